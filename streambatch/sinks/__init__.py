"""Where scores go: one file per sink."""

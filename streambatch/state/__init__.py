"""What a pipeline remembers: the ack ledger, dead letters, what a run reports."""

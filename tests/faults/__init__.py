"""Daemons that are killed, starved, lied to and held up, and an oracle outside of them: ids in, ids out."""

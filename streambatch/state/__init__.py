"""What a pipeline remembers: the ack ledger, the checkpoint store, dead letters, what a run reports."""

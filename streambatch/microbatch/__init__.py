"""Grouping records into batches: the bounded inbox, the window that says when a batch closes, the byte budget."""

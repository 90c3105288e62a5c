"""What works on a pipeline from outside, by its status, its state and its files; never by its objects."""

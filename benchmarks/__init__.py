"""streambatch beside what one would write by hand, in one run on one machine: ratios count, absolute times are noise.

Every case reads the same JSONL, standardises it, scores it with a linear model and writes JSONL, in its own process.
"""

"""Benchmarks: `python dev.py bench [topic]`; each module offers `tables()`."""

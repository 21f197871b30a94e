"""Benchmarks against other tools, timed in turn; `make bench` runs all. None of them is a test."""

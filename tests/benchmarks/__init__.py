"""Timings beside other tools, as ratios taken in turn in one run; `make bench` runs all. None of them is a test."""

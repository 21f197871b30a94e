"""Metrics, statistics, gates and reports of evaluations. Models and data are passed in as measurements."""

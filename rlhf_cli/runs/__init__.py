"""Runs: numbered folders that are complete exactly when their manifest is there. Standard library alone."""

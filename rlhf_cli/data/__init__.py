"""Datasets: read files and Hub datasets into typed rows, split them by prompt, and tokenize them."""

"""Proximal policy optimization: the loop, its parts and its arithmetic."""

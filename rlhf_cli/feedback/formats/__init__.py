"""Formats of feedback: those of published datasets and of other annotation tools, for import and export."""

"""Run folders: numbered versions that are complete once they have a manifest. Standard library only."""

"""Recipes: one typed, frozen YAML file that every stage reads. `load` is the door."""

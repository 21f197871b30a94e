"""`rlhf`: from a base model and human preferences to an aligned, evaluated, exported model."""

__version__ = "0.1.0"

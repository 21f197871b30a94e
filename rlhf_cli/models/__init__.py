"""Load, adapt, share and measure models."""

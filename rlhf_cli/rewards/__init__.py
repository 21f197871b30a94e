"""Reward sources: each scores completions by itself, and PPO learns from their weighted sum."""

"""What surrounds a stage: resolving its inputs, checks before it starts, running it, and recording it."""

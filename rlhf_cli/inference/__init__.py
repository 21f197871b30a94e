"""Sample completions from models and score token sequences with them."""

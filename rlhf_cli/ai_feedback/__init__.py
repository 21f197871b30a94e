"""AI feedback: a language model that compares completions by a written constitution, or critiques and revises."""

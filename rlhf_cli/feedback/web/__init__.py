"""The page on which annotators judge, and the owner's overview."""

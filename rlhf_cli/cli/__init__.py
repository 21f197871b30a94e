"""The command line: parse, call, print. What is heavy is imported inside the commands."""

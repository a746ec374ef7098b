"""The packed format and reading it."""

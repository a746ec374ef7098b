"""Other libraries that do the same work, in a separate virtual environment."""

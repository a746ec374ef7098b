"""Libraries that do the same work, in a virtual environment of their own."""

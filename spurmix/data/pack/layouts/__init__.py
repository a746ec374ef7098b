"""Source layouts that packing reads."""

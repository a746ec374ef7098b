"""Sources of examples: arrays, token ids and files."""

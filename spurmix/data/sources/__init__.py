"""Where examples are: arrays, tokens, packed files."""

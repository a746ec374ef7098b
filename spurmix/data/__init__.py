"""Packed datasets, sources of examples, and the loader that yields mixed batches."""

"""From where: sources of examples, the buffer ring, and the loader that yields mixed batches."""

"""MixLoader: draws, labels and mixes batches ahead of the consumer."""

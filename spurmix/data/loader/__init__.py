"""MixLoader and the pipeline that draws, labels and mixes its batches ahead of the consumer."""

"""All cases. Importing this package registers them."""

from bench.cases import embeddings, heads, images, loader, losses, packed, rows, samplers, startup, text, text_step

__all__ = [
    "embeddings",
    "heads",
    "images",
    "loader",
    "losses",
    "packed",
    "rows",
    "samplers",
    "startup",
    "text",
    "text_step",
]

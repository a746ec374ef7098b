"""All cases. Importing this package registers them."""

from bench.cases import images, loader, losses, rows, samplers, startup, text

__all__ = ["images", "loader", "losses", "rows", "samplers", "startup", "text"]

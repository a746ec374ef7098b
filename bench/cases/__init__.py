"""All cases. Importing this package registers them."""

from bench.cases import images, loader, losses, rows, samplers, startup, text, text_step

__all__ = ["images", "loader", "losses", "rows", "samplers", "startup", "text", "text_step"]

"""The version of spurmix."""

__version__ = "0.1.0"

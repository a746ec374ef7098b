"""Layouts of source data. Each module has one function that returns a `Manifest`."""

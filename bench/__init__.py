"""Benchmarks: ratios against what a user would write otherwise, measured in one run, each after a correctness gate."""

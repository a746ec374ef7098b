"""Benchmarks of spurmix against other ways to do the same work. See bench/README.md."""

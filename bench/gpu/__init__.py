"""Benchmark on a GPU. `python -m bench.gpu` runs its steps, each in its own process."""

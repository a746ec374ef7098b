"""The GPU benchmark: `python -m bench.gpu` builds, tests and measures in steps, each in a process of its own."""

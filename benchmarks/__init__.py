"""Measurements. `python -m benchmarks.glance` needs a GPU."""

"""Measurements: `python -m benchmarks run` needs a GPU, `offline` does not."""

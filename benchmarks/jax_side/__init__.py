"""The JAX frontend beside XLA's own formulas, optax and tokamax: `python -m benchmarks jax`. No torch is needed."""

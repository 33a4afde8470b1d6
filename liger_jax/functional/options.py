"""Options that are numbers."""

from __future__ import annotations

import jax


def number(argument: str, value: object) -> float:
    """A number that the program is compiled with."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{argument} is traced by JAX, but the program is compiled with its value; pass a Python number, and name "
            f"{argument} in static_argnames where it is an argument of a function under jax.jit."
        )
    if value is None or isinstance(value, str):
        raise TypeError(f"{argument} is {value!r}; it must be a number.")
    return float(value)  # type: ignore[arg-type]

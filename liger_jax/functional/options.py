"""Options that are numbers."""

from __future__ import annotations

import operator

import jax


def number(argument: str, value: object) -> float:
    """A number that the program is compiled with."""
    _not_traced(argument, value)
    if value is None or isinstance(value, (str, bool)):
        raise TypeError(f"{argument} is {value!r}; it must be a number.")
    return float(value)  # type: ignore[arg-type]


def integer(argument: str, value: object) -> int:
    """An integer that the program is compiled with."""
    _not_traced(argument, value)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{argument} is {value!r}; it must be an integer.")
    return operator.index(value)


def _not_traced(argument: str, value: object) -> None:
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{argument} is traced by JAX, but the program is compiled with its value; pass a Python number, and name "
            f"{argument} in static_argnames where it is an argument of a function under jax.jit."
        )

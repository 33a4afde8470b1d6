"""The ops of the JAX frontend beside plain jnp (or optax) of the same meaning, with inputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

IGNORED = -100

triton = functools.partial(functools.partial, implementation="triton")


@dataclasses.dataclass(frozen=True)
class Case:
    """One function.

    Attributes:
        name: of the case.
        ours: the function, with the kernels.
        plain: what a user would write otherwise, in the dtype of its arguments.
        make: (random generator, dtype) -> arguments.
        rows: for each argument, whether it has a token axis in front; the others are shared.
        differentiable: the arguments to differentiate.
        launches: kernel calls of the forward pass alone, and of forward and backward.
    """

    name: str
    ours: Callable[..., Any]
    plain: Callable[..., Any]
    make: Callable[[np.random.Generator, Any], tuple[jax.Array, ...]]
    rows: tuple[bool, ...]
    differentiable: tuple[int, ...]
    launches: tuple[int, int]


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * rng.standard_normal(shape), dtype)


def labels(rng: np.random.Generator, shape: tuple[int, ...], vocab: int) -> jax.Array:
    values = rng.integers(0, vocab, shape)
    values[rng.random(shape) < 0.2] = IGNORED
    return jnp.asarray(values, jnp.int32)


def cotangents(rng: np.random.Generator, outputs: Any) -> Any:
    return jax.tree.map(lambda y: normal(rng, y.shape, y.dtype), outputs)


def gradients(
    function: Callable[..., Any], case: Case, arguments: tuple[Any, ...], cotangent: Any
) -> tuple[Any, Any]:
    """Outputs and gradients of the differentiable arguments."""

    def partial(*active: Any) -> Any:
        full = list(arguments)
        for i, value in zip(case.differentiable, active, strict=True):
            full[i] = value
        return function(*full)

    outputs, pull_back = jax.vjp(partial, *(arguments[i] for i in case.differentiable))
    return outputs, pull_back(jax.tree.map(lambda g, y: g.astype(y.dtype), cotangent, outputs))


def root_mean_square(difference: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(difference, np.float64)))))

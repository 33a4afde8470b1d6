"""A mesh of four CPU devices, what a function returns on one, and what its program does there."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from liger import interpret

P = PartitionSpec
KINDS = (AxisType.Auto, AxisType.Explicit)


def collectives(program: str) -> dict[str, int]:
    """How often each collective occurs in a compiled program."""
    names = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    return {name: len(re.findall(rf" {name}(?:-start)?\(", program)) for name in names}


def reduced(program: str) -> set[int]:
    """How many elements the arrays have that a compiled program sums over devices."""
    results = re.findall(r" = (.*?) all-reduce(?:-start)?\(", program)
    shapes = re.findall(r"\w+\[([\d,]*)\]", " ".join(results))
    return {math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes}


def gathered(program: str) -> int:
    """Elements of the largest array that a compiled program gathers."""
    shapes = re.findall(r" = \(?\w+\[([\d,]*)\].* all-gather(?:-start)?\(", program)
    return max((math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes), default=0)


@contextlib.contextmanager
def mesh_of(kind: AxisType) -> Iterator[Any]:
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        yield mesh


def on_mesh(kind: AxisType, function: Callable[..., Any], arguments: Any, specs: Any) -> tuple[Any, str]:
    """What the jitted function returns, and its program."""
    with mesh_of(kind) as mesh:
        placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arguments, specs, strict=True)]
        compiled = jax.jit(function).lower(*placed).compile()
        return compiled(*placed), compiled.as_text()


def check_nothing_gathered(
    program: str, kind: AxisType, implementation: str, tokens: int, message: str
) -> None:
    """Nothing that is divided is gathered; where XLA alone divides plain jnp code, no more than numbers per token."""
    if interpret.enabled() and kind == AxisType.Auto:
        return  # JAX crashes on what would be needed (liger_jax.meshes)
    found = collectives(program)
    assert found["all-to-all"] == found["collective-permute"] == 0, (message, found)
    alone = implementation == "xla" and kind == AxisType.Auto
    assert gathered(program) <= (4 * tokens if alone else 0), (message, found, gathered(program))


def close(ours: Any, expected: Any, message: str) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), message
        scale = np.abs(np.asarray(b, np.float64)).max(initial=0)
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * scale, err_msg=message)

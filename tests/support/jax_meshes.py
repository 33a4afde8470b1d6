"""Values and gradients on a mesh of two CPU devices, beside those of one device; run as a program of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import liger_jax

SPLIT, WHOLE = PartitionSpec("d"), PartitionSpec()


def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return jnp.sum(liger_jax.rms_norm(x, scale) ** 2)


def loss(x: jax.Array, kernel: jax.Array, labels: jax.Array, reduction: str) -> jax.Array:
    result = liger_jax.linear_softmax_cross_entropy(x, kernel, labels, reduction=reduction)
    assert isinstance(result, jax.Array)
    return jnp.sum(result)


def on_axes(kind: AxisType, function: Callable[..., Any], arguments: Any, specs: Any) -> Any:
    mesh = jax.make_mesh((2,), ("d",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(arguments, specs, strict=True)
        ]
        return jax.jit(jax.value_and_grad(function, (0, 1)))(*placed)


def in_shard_map(check: bool, function: Callable[..., Any], arguments: Any, specs: Any) -> Any:
    """Differentiated inside: with check_vma, a replicated argument's gradient is summed over the mesh."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))

    def per_device(*arguments: Any) -> Any:
        value, (rows, shared) = jax.value_and_grad(function, (0, 1))(*arguments)
        return jax.lax.psum(value, "d"), (rows, shared if check else jax.lax.psum(shared, "d"))

    mapped = jax.shard_map(
        per_device, mesh=mesh, in_specs=specs, out_specs=(WHOLE, (SPLIT, WHOLE)), check_vma=check
    )
    return jax.jit(mapped)(*arguments)


def around_shard_map(check: bool, function: Callable[..., Any], arguments: Any, specs: Any) -> Any:
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        lambda *a: jax.lax.psum(function(*a), "d"),
        mesh=mesh,
        in_specs=specs,
        out_specs=WHOLE,
        check_vma=check,
    )
    return jax.jit(jax.value_and_grad(mapped, (0, 1)))(*arguments)


def main() -> None:
    assert jax.device_count() == 2
    rng = np.random.default_rng(0)
    x, scale, kernel = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((4, 8), (8,), (8, 30)))
    labels = jnp.array([1, 2, -100, 4])
    cases = (
        (norm, (x, scale), (SPLIT, WHOLE)),
        *(
            (functools.partial(loss, reduction=reduction), (x, kernel, labels), (SPLIT, WHOLE, SPLIT))
            for reduction in ("none", "sum")
        ),
    )
    for function, arguments, specs in cases:
        expected = jax.tree.leaves(jax.value_and_grad(function, (0, 1))(*arguments))
        for run, kind in (
            (on_axes, AxisType.Auto),
            (on_axes, AxisType.Explicit),
            (in_shard_map, False),
            (in_shard_map, True),
            (around_shard_map, False),
            (around_shard_map, True),
        ):
            results = jax.tree.leaves(run(kind, function, arguments, specs))
            for ours, theirs in zip(results, expected, strict=True):
                np.testing.assert_allclose(
                    ours, theirs, rtol=1e-5, atol=1e-5, err_msg=f"{run} {kind} {function}"
                )


if __name__ == "__main__":
    main()

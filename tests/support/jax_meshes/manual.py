"""Losses and a norm in shard_map, differentiated inside of it and around it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import liger_jax
from jax_meshes.mesh import P, close, mesh_of


def loss_of(x: jax.Array, kernel: jax.Array, labels: jax.Array, reduction: str) -> jax.Array:
    result = liger_jax.linear_softmax_cross_entropy(x, kernel, labels, reduction=reduction)
    assert isinstance(result, jax.Array)
    return jnp.sum(result)


def in_shard_map(check: bool, function: Callable[..., Any], arguments: Any, specs: Any) -> Any:
    """Differentiated inside: with check_vma, a replicated argument's gradient is summed over the mesh."""

    def per_device(*arguments: Any) -> Any:
        value, (rows, shared) = jax.value_and_grad(function, (0, 1))(*arguments)
        return jax.lax.psum(value, "data"), (rows, shared if check else jax.lax.psum(shared, "data"))

    out_specs = (P(), (P("data"), P()))
    return jax.jit(jax.shard_map(per_device, in_specs=specs, out_specs=out_specs, check_vma=check))(
        *arguments
    )


def around_shard_map(check: bool, function: Callable[..., Any], arguments: Any, specs: Any) -> Any:
    mapped = jax.shard_map(
        lambda *a: jax.lax.psum(function(*a), "data"), in_specs=specs, out_specs=P(), check_vma=check
    )
    return jax.jit(jax.value_and_grad(mapped, (0, 1)))(*arguments)


def distilled(
    x: jax.Array, kernel: jax.Array, teacher_x: jax.Array, labels: jax.Array, reduction: str
) -> jax.Array:
    teacher = jnp.cos(jnp.arange(90.0)).reshape(3, 30)
    options: dict[str, Any] = {"temperature": 2.0, "hard_weight": 0.5, "reduction": reduction}
    loss = liger_jax.linear_jsd(x, kernel, teacher_x, teacher, labels, **options)
    assert isinstance(loss, jax.Array)
    return jnp.sum(loss)


def inside_and_around() -> None:
    rng = np.random.default_rng(0)
    x, scale, kernel = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((4, 8), (8,), (8, 30)))
    teacher_x = jnp.asarray(rng.standard_normal((4, 3)), jnp.float32)
    labels = jnp.array([1, 2, -100, 4])
    cases: tuple[Any, ...] = (
        (lambda x, scale: jnp.sum(liger_jax.rms_norm(x, scale) ** 2), (x, scale), (P("data"), P())),
        *(
            (functools.partial(loss_of, reduction=r), (x, kernel, labels), (P("data"), P(), P("data")))
            for r in ("none", "sum")
        ),
        *(
            (
                functools.partial(distilled, reduction=r),
                (x, kernel, teacher_x, labels),
                (P("data"), P(), P("data"), P("data")),
            )
            for r in ("none", "sum")
        ),
    )
    for function, arguments, specs in cases:
        expected = jax.jit(jax.value_and_grad(function, (0, 1)))(*arguments)
        for run in (in_shard_map, around_shard_map):
            for check in (False, True):
                with mesh_of(AxisType.Auto):
                    close(run(check, function, arguments, specs), expected, f"{run} {check}")

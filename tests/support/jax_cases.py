"""The ops of the JAX frontend beside plain jnp (or optax) of the same meaning, with inputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import liger_jax

IGNORED = -100


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


def plain_rms_norm(
    x: jax.Array, scale: jax.Array | None, offset: float = 0.0, llama: bool = True
) -> jax.Array:
    compute = jnp.promote_types(x.dtype, jnp.float32)
    wide = x.astype(compute)
    y = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-6)
    if scale is None:
        return y.astype(x.dtype)
    if llama:
        return y.astype(x.dtype) * (scale + offset)
    return (y * (scale.astype(compute) + offset)).astype(x.dtype)


def plain_add_rms_norm(x: jax.Array, residual: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    return plain_rms_norm(x + residual, scale), x + residual


def plain_rope(
    q: jax.Array, k: jax.Array, cos: jax.Array, sin: jax.Array, interleaved: bool = False
) -> tuple[jax.Array, jax.Array]:
    n = cos.shape[-1]

    def rotate(x: jax.Array) -> jax.Array:
        c, s = cos[..., None, :].astype(x.dtype), sin[..., None, :].astype(x.dtype)
        head, rest = x[..., :n], x[..., n:]
        if interleaved:
            turned = jnp.stack([-head[..., 1::2], head[..., ::2]], -1).reshape(head.shape)
        else:
            turned = jnp.concatenate([-head[..., n // 2 :], head[..., : n // 2]], -1)
        return jnp.concatenate([head * c + turned * s, rest], -1)

    return rotate(q), rotate(k)


def tables(seq: int, rotary: int, interleaved: bool, dtype: Any) -> tuple[jax.Array, jax.Array]:
    angles = np.arange(seq)[:, None] / 100 ** (np.arange(rotary // 2) / (rotary // 2))
    angles = np.repeat(angles, 2, -1) if interleaved else np.concatenate([angles, angles], -1)
    return jnp.asarray(np.cos(angles), dtype)[None], jnp.asarray(np.sin(angles), dtype)[None]


def plain_cross_entropy(logits: jax.Array, targets: jax.Array, reduction: str = "none") -> jax.Array:
    valid = targets != IGNORED
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, targets, 0), where=None)
    loss = jnp.where(valid, loss, 0)
    return loss if reduction == "none" else loss.sum() / jnp.maximum(valid.sum(), 1)


def plain_linear(x: jax.Array, kernel: jax.Array, targets: jax.Array, reduction: str = "mean") -> jax.Array:
    return plain_cross_entropy(x @ kernel, targets, reduction)


def plain_z_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    capped = 5.0 * jnp.tanh(logits / 5.0)
    valid = targets != IGNORED
    smooth = optax.smooth_labels(
        jax.nn.one_hot(jnp.where(valid, targets, 0), logits.shape[-1], dtype=logits.dtype), 0.1
    )
    loss = optax.softmax_cross_entropy(capped, smooth) + 1e-2 * jax.nn.logsumexp(capped, axis=-1) ** 2
    return jnp.where(valid, loss, 0)


def _rope_inputs(
    rng: np.random.Generator, dtype: Any, interleaved: bool, rotary: int, k_heads: int
) -> tuple[Any, ...]:
    q, k = normal(rng, (2, 5, 4, 20), dtype), normal(rng, (2, 5, k_heads, 20), dtype)
    return q, k, *tables(5, rotary, interleaved, jnp.promote_types(dtype, jnp.float32))


triton = functools.partial(functools.partial, implementation="triton")
ce = triton(liger_jax.softmax_cross_entropy_with_integer_labels)
linear = triton(liger_jax.linear_softmax_cross_entropy)

CASES = (
    Case(
        "rms_norm",
        triton(liger_jax.rms_norm),
        plain_rms_norm,
        lambda rng, dtype: (normal(rng, (3, 4, 33), dtype), normal(rng, (33,), dtype)),
        (True, False),
        (0, 1),
        (1, 3),
    ),
    Case(
        "rms_norm-gemma",
        triton(liger_jax.rms_norm, scale_offset=1.0, casting="gemma"),
        functools.partial(plain_rms_norm, offset=1.0, llama=False),
        lambda rng, dtype: (normal(rng, (7, 256), dtype), normal(rng, (256,), dtype)),
        (True, False),
        (0, 1),
        (1, 3),
    ),
    Case(
        "rms_norm-no-scale",
        triton(liger_jax.rms_norm),
        lambda x: plain_rms_norm(x, None),
        lambda rng, dtype: (normal(rng, (5, 96), dtype),),
        (True,),
        (0,),
        (1, 2),
    ),
    Case(
        "add_rms_norm",
        lambda *a: tuple(liger_jax.add_rms_norm(*a, implementation="triton")),
        plain_add_rms_norm,
        lambda rng, dtype: (
            normal(rng, (2, 3, 65), dtype),
            normal(rng, (2, 3, 65), dtype),
            normal(rng, (65,), dtype),
        ),
        (True, True, False),
        (0, 1, 2),
        (1, 3),
    ),
    Case(
        "rope",
        triton(liger_jax.apply_rope),
        plain_rope,
        lambda rng, dtype: _rope_inputs(rng, dtype, False, 20, 2),
        (True, True, False, False),
        (0, 1),
        (1, 2),
    ),
    Case(
        "rope-interleaved-partial",
        triton(liger_jax.apply_rope, interleaved=True),
        functools.partial(plain_rope, interleaved=True),
        lambda rng, dtype: _rope_inputs(rng, dtype, True, 12, 3),
        (True, True, False, False),
        (0, 1),
        (1, 2),
    ),
    Case(
        "swiglu",
        triton(liger_jax.swiglu),
        lambda gate, up: jax.nn.silu(gate) * up,
        lambda rng, dtype: (normal(rng, (3, 2, 77), dtype), normal(rng, (3, 2, 77), dtype)),
        (True, True),
        (0, 1),
        (1, 2),
    ),
    Case(
        "swiglu-packed",
        triton(liger_jax.swiglu),
        lambda packed: jax.nn.silu(packed[..., :40]) * packed[..., 40:],
        lambda rng, dtype: (normal(rng, (5, 80), dtype),),
        (True,),
        (0,),
        (1, 2),
    ),
    Case(
        "cross_entropy",
        ce,
        plain_cross_entropy,
        lambda rng, dtype: (normal(rng, (3, 4, 131), dtype, 3.0), labels(rng, (3, 4), 131)),
        (True, True),
        (0,),
        (2, 3),
    ),
    Case(
        "cross_entropy-mean",
        functools.partial(ce, reduction="mean"),
        functools.partial(plain_cross_entropy, reduction="mean"),
        lambda rng, dtype: (normal(rng, (9, 64), dtype, 3.0), labels(rng, (9,), 64)),
        (True, True),
        (0,),
        (3, 4),
    ),
    Case(
        "cross_entropy-options",
        functools.partial(ce, label_smoothing=0.1, z_loss=1e-2, softcap=5.0),
        plain_z_loss,
        lambda rng, dtype: (normal(rng, (6, 50), dtype, 3.0), labels(rng, (6,), 50)),
        (True, True),
        (0,),
        (2, 3),
    ),
    Case(
        "linear_cross_entropy",
        functools.partial(linear, reduction="mean"),
        plain_linear,
        lambda rng, dtype: (
            normal(rng, (11, 24), dtype),
            normal(rng, (24, 70), dtype, 0.3),
            labels(rng, (11,), 70),
        ),
        (True, False, True),
        (0, 1),
        (3, 5),
    ),
    Case(
        "linear_cross_entropy-none",
        linear,
        functools.partial(plain_linear, reduction="none"),
        lambda rng, dtype: (
            normal(rng, (2, 5, 24), dtype),
            normal(rng, (24, 70), dtype, 0.3),
            labels(rng, (2, 5), 70),
        ),
        (True, False, True),
        (0, 1),
        (2, 3),
    ),
)


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

"""The JAX programs that are compiled: an op of liger_jax as users call it, and the plain formula beside it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax_cases import divergences, logprobs, losses, norms, position

import liger_jax

N, H, V = 8192, 4096, 128_256
"""Tokens; the hidden size and the vocabulary of Llama 3."""

BF16, INT32 = jnp.bfloat16, jnp.int32


@dataclasses.dataclass(frozen=True)
class Program:
    """Value and gradients of a function.

    Attributes:
        name: op and size.
        ours: the function.
        plain: what a user would write otherwise.
        arguments: shapes and dtypes.
        differentiable: how many of the arguments, from the first one on, to differentiate.
    """

    name: str
    ours: Callable[..., Any]
    plain: Callable[..., Any]
    arguments: tuple[tuple[tuple[int, ...], Any], ...]
    differentiable: int

    def differentiated(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Value and gradients, given the arguments and the cotangents of what is no scalar."""
        n = len(self.arguments)

        def program(*given: Any) -> Any:
            fixed = given[self.differentiable : n]
            value, back = jax.vjp(lambda *x: function(*x, *fixed), *given[: self.differentiable])
            incoming = iter(given[n:])
            return value, back(
                jax.tree.map(lambda y: next(incoming) if y.ndim else jnp.ones((), y.dtype), value)
            )

        return program

    def cotangents(self, function: Callable[..., Any]) -> list[tuple[tuple[int, ...], Any]]:
        """Their shapes and dtypes."""
        outputs = jax.eval_shape(function, *(jax.ShapeDtypeStruct(*a) for a in self.arguments))
        return [(y.shape, y.dtype) for y in jax.tree.leaves(outputs) if y.ndim]


X, SCALE, ROW = ((N, H), BF16), ((H,), BF16), ((N,), INT32)
KERNEL, TRANSPOSED, LOGITS = ((H, V), BF16), ((V, H), BF16), ((N, V), BF16)
WIDE, TABLE = ((N, 14_336), BF16), ((1, N, 128), BF16)
HEADS = tuple(((1, N, n, 128), BF16) for n in (32, 8))

_loss = liger_jax.linear_softmax_cross_entropy


def _logp(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: function(*arguments, differentiable=("logp",)).logp


def _mean(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: jnp.mean(function(*arguments))


PROGRAMS = (
    Program(f"rms_norm {N}x{H}", liger_jax.rms_norm, norms.plain_rms_norm, (X, SCALE), 2),
    Program(f"add_rms_norm {N}x{H}", liger_jax.add_rms_norm, norms.plain_add_rms_norm, (X, X, SCALE), 3),
    Program(f"layer_norm {N}x{H}", liger_jax.layer_norm, norms.plain_layer_norm, (X, SCALE, SCALE), 3),
    Program(f"swiglu {N}x14336", liger_jax.swiglu, lambda gate, up: jax.nn.silu(gate) * up, (WIDE, WIDE), 2),
    Program(
        f"apply_rope {N} tokens, 32+8 heads of 128",
        liger_jax.apply_rope,
        position.plain_rope,
        (*HEADS, TABLE, TABLE),
        2,
    ),
    Program(
        f"qk_norm_rope {N} tokens, 32+8 heads of 128",
        liger_jax.qk_norm_rope,
        position.plain_qk_norm_rope,
        (*HEADS, ((128,), BF16), ((128,), BF16), TABLE, TABLE),
        4,
    ),
    Program(
        f"embedding {N} tokens, {V}x{H}",
        liger_jax.embedding,
        lambda table, ids: jnp.take(table, ids, axis=0),
        (TRANSPOSED, ROW),
        1,
    ),
    Program(
        f"cross_entropy {N}x{V}, mean",
        functools.partial(liger_jax.softmax_cross_entropy_with_integer_labels, reduction="mean"),
        functools.partial(losses.plain_cross_entropy, reduction="mean"),
        (LOGITS, ROW),
        1,
    ),
    Program(
        f"jsd of logits {N}x{V}, mean",
        functools.partial(liger_jax.jsd, from_logits=True, reduction="mean"),
        _mean(lambda s, t: divergences.plain_jsd(jax.nn.log_softmax(s), jax.nn.log_softmax(t))),
        (LOGITS, LOGITS),
        1,
    ),
    *(
        Program(
            f"linear_cross_entropy {N}x{H}x{V}, {reduction}, {layout}",
            functools.partial(_loss, kernel_layout=layout, reduction=reduction),
            lambda x, kernel, labels, reduction=reduction, layout=layout: losses.plain_linear(
                x, kernel if layout == "hv" else kernel.T, labels, reduction
            ),
            (X, KERNEL if layout == "hv" else TRANSPOSED, ROW),
            2,
        )
        for reduction in ("mean", "none")
        for layout in ("hv", "vh")
    ),
    Program(
        f"linear_logprobs {N}x{H}x{V}",
        _logp(liger_jax.linear_logprobs),
        _logp(logprobs.plain_linear),
        (X, KERNEL, ROW),
        2,
    ),
    Program(
        f"linear_jsd {N}x{H}x{V}, mean",
        functools.partial(liger_jax.linear_jsd, beta=0.2, reduction="mean"),
        _mean(divergences.plain_linear_jsd),
        (X, KERNEL, X, KERNEL),
        2,
    ),
)

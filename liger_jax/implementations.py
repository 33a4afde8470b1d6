"""Which implementation a function takes: the Triton kernels, or the reference compiled by XLA.

Both have the same gradients and keep the same little for the backward pass: "xla" is the op's reference under a
`custom_vjp` that keeps the operands alone, where plain jnp code keeps several float32 intermediates.

A call chooses by its argument `implementation`; `preferring` chooses for calls that have none, as those of layers.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping

from liger.op import Op
from liger_jax.primitives import Specs

TRITON, XLA = "triton", "xla"

DEFAULTS: dict[str, str] = {
    # XLA: the least traffic forward, and 1.0 to 1.15 times as long; backward 1.7 times the bytes, 1.7 to 1.95 times as
    # long.
    "rms_norm": TRITON,
    # XLA: 1.25 times the least traffic forward, 1.7 times backward; 1.3 and 1.95 to 2.4 times as long.
    "add_rms_norm": TRITON,
    # XLA: the least traffic forward, and 1.0 to 1.6 times as long; backward 3 times the bytes, 3.4 to 4.3 times as
    # long.
    "layer_norm": TRITON,
    # XLA: 1.25 times the least traffic forward, 3.5 times backward; 1.3 to 1.6 and 3.6 to 4 times as long.
    "add_layer_norm": TRITON,
    # XLA: forward 1.1 times as fast at two of three sizes, 1.2 times as long at the other; backward 2.6 to 5.6 times as
    # long, for 4 to 5 times the least traffic.
    "group_norm": TRITON,
    # XLA: 1.06 times the least traffic; 1.05 times as long forward, 2.7 times backward.
    "rope": TRITON,
    # XLA: 1.07 and 1.12 times the least traffic, for it gathers and merges the tables beforehand; of mrope 1.2 times as
    # long forward, 2.7 times backward.
    "rope_at_positions": TRITON,
    "mrope": TRITON,
    # XLA: 1.5 times as long forward; backward 1.7 times the bytes, 3.5 times as long.
    "qk_norm_rope": TRITON,
    # XLA: the least traffic; 1.1 to 1.3 times as long forward, 1.1 to 1.45 times backward, and packed 1.9 times.
    "swiglu": TRITON,
    "geglu": TRITON,
    # XLA: the least traffic; 1.3 times as long forward, as long backward.
    "relu_squared": TRITON,
    # XLA: the least traffic in both passes; twice that for rows as wide as a vocabulary, and 2.2 and 1.9 times as long.
    "softmax": TRITON,
    # XLA sorts every row.
    "sparsemax": TRITON,
    # XLA: the same forward; backward a float32 gradient of the whole table, filled by atomics in any order.
    "embedding": TRITON,
    # XLA unpacks the whole weight to memory.
    "int2_matmul": TRITON,
    # XLA: 2 to 6 times the least traffic, and up to two float32 copies of the logits; 1.5 times as long by a one-hot
    # formula, 2.4 times by one that looks the label up.
    "cross_entropy": TRITON,
    # XLA: the logits of the whole batch in memory; the best of its formulas takes 1.03 to 1.07 times as long.
    "linear_cross_entropy": TRITON,
    # XLA: several float32 copies of the logits.
    "logprobs": TRITON,
    # XLA: the logits of the whole batch in memory; the best of its formulas is up to 1.2 times as fast, and slower than
    # ours with `keep_logits`.
    "linear_logprobs": TRITON,
    # XLA: 1.6 to 2 times as long; the plain formula, differentiated by JAX, .98 to 1.01 times.
    "kl_div": TRITON,
    # XLA: from logits, one more sweep over both in either direction, and a float32 copy of each.
    "jsd": TRITON,
    "tvd": TRITON,
    # XLA: the logits of the whole batch, of both models, in memory.
    "linear_jsd": TRITON,
}
"""The better implementation of each op on a GPU: by XLA's own count of the bytes that its kernels move on an H200, and
where a time is given by device time there, of the sizes of `python -m benchmarks jax`, which measures both
implementations of every op beside XLA's plain formula. "XLA" is this package's implementation by it, where no other
formula is named.
"""


_preferred: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar(
    "liger_preferred", default=DEFAULTS
)


@contextlib.contextmanager
def preferring(**choices: str) -> Iterator[None]:
    """Take other implementations than the default ones, by the name of the op (`python -m liger ops`).

    Holds for functions traced inside the context. (JAX reuses a trace that it made before: use a new function.)

    Raises:
        ValueError: a name that is no op's, or another implementation than "triton" or "xla".

    >>> import jax, jax.numpy as jnp, liger_jax
    >>> with liger_jax.preferring(rms_norm="xla", swiglu="xla"):
    ...     y = jax.jit(liger_jax.rms_norm)(jnp.ones((4, 64)), jnp.ones(64))
    """
    for name, choice in choices.items():
        if name not in DEFAULTS:
            raise ValueError(f"preferring: {name} is no op; choose of {', '.join(DEFAULTS)}.")
        _check(name, choice)
    token = _preferred.set({**_preferred.get(), **choices})
    try:
        yield
    finally:
        _preferred.reset(token)


def _check(op: str, implementation: str) -> None:
    if implementation not in (TRITON, XLA):
        raise ValueError(f"{op}: implementation is {implementation!r}; choose None, {TRITON!r} or {XLA!r}.")


def use_kernels(op: Op, operands: Specs, implementation: str | None) -> bool:
    """Whether to take the kernels. Without a choice, float64 operands take XLA: the kernels compute in float32."""
    double = [
        operand.name
        for operand, spec in zip(op.operands, operands, strict=True)
        if spec is not None and spec.dtype == "float64"
    ]
    if implementation is None:
        return _preferred.get()[op.name] == TRITON and not double
    _check(op.name, implementation)
    if implementation == TRITON and double:
        raise TypeError(
            f"{op.name}: {double[0]} has dtype float64, and the kernels compute in float32; "
            f"cast it, or pass implementation={XLA!r}."
        )
    return implementation == TRITON

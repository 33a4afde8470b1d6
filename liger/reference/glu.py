"""The elementwise part of gated linear units."""

from __future__ import annotations

import math
from typing import Any

from liger.reference.common import compute_dtype, erf, namespace


def glu(
    gate: Any,
    up: Any | None,
    *,
    activation: str,
    gate_multiplier: float,
    alpha: float,
    limit: float | None,
    up_offset: float,
    interleaved: bool,
) -> Any:
    """y = act(a) * b (Shazeer, arXiv:2002.05202).

        a = min(gate_multiplier * gate, limit)
        b = clip(up, -limit, limit) + up_offset
        act(a) = a * P(alpha * a)

    P is the logistic function for "silu", the normal distribution's for "gelu", and its approximation by a tanh for
    "gelu_tanh". Without `up`, `gate` holds both along its last axis: [gate | up], or interleaved pairs (gate, up).
    """
    xp = namespace(gate)
    if up is None:
        half = gate.shape[-1] // 2
        if interleaved:
            gate, up = gate[..., ::2], gate[..., 1::2]
        else:
            gate, up = gate[..., :half], gate[..., half:]
    compute = compute_dtype(gate)
    a = xp.astype(gate, compute) * gate_multiplier
    b = xp.astype(up, compute)
    if limit is not None:
        # The gradient at the limit itself is that of what lies within, as in torch.clamp.
        bound = xp.full_like(a, limit)
        a = xp.where(a > limit, bound, a)
        b = xp.where(b > limit, bound, xp.where(b < -limit, -bound, b))
    return xp.astype(a * _distribution(alpha * a, activation) * (b + up_offset), gate.dtype)


def _distribution(t: Any, activation: str) -> Any:
    if activation == "gelu":
        return 0.5 * (1 + erf(t * math.sqrt(0.5)))
    if activation == "gelu_tanh":
        t = 2 * math.sqrt(2 / math.pi) * (t + 0.044715 * t * t * t)
    xp = namespace(t)
    # Only the exponential of a negative number is taken: it and its derivative stay finite.
    small = xp.exp(-xp.abs(t))
    return xp.where(t >= 0, xp.ones_like(t), small) / (1 + small)

"""SwiGLU's elementwise part."""

from __future__ import annotations

from typing import Any

from liger.reference.common import compute_dtype, namespace


def swiglu(gate: Any, up: Any | None) -> Any:
    """y = silu(gate) * up, silu(a) = a * sigmoid(a) (Shazeer, arXiv:2002.05202).

    Without `up`, `gate` holds both halves along its last axis: [gate | up].
    """
    xp = namespace(gate)
    if up is None:
        half = gate.shape[-1] // 2
        gate, up = gate[..., :half], gate[..., half:]
    compute = compute_dtype(gate)
    wide = xp.astype(gate, compute)
    return xp.astype(wide / (1 + xp.exp(-wide)) * xp.astype(up, compute), gate.dtype)

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
    # Only the exponential of a negative number is taken: it and its derivative stay finite.
    small = xp.exp(-xp.abs(wide))
    sigmoid = xp.where(wide >= 0, xp.ones_like(wide), small) / (1 + small)
    return xp.astype(wide * sigmoid * xp.astype(up, compute), gate.dtype)

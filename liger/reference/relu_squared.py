"""The square of ReLU."""

from __future__ import annotations

from typing import Any

from liger.reference.common import compute_dtype, namespace


def relu_squared(x: Any) -> Any:
    """y = max(x, 0)^2 (So et al., arXiv:2109.08668)."""
    xp = namespace(x)
    wide = xp.astype(x, compute_dtype(x))
    positive = xp.where(wide < 0, xp.zeros_like(wide), wide)
    return xp.astype(positive * positive, x.dtype)

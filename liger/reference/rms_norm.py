"""Root mean square normalisation."""

from __future__ import annotations

from typing import Any

from liger.reference.common import along_last, compute_dtype, namespace


def rms_norm(x: Any, weight: Any | None, *, eps: float, offset: float, casting: str) -> Any:
    """y = x / sqrt(mean(x^2) + eps) * (offset + weight), over the last axis (Zhang & Sennrich, arXiv:1910.07467).

    `casting` names the place where the result is rounded to x's dtype: "llama" before the weight (the product then
    has the common dtype of x and weight), "gemma" and "none" after it.
    """
    xp = namespace(x)
    compute = compute_dtype(x)
    wide = xp.astype(x, compute)
    # Times the inverse root, not divided by the root: the model families' rounding, to the bit.
    normed = wide * (1 / xp.sqrt(xp.mean(wide * wide, axis=-1, keepdims=True) + eps))
    if weight is None:
        return xp.astype(normed, x.dtype)
    if casting == "llama":
        normed = xp.astype(normed, x.dtype)
        out_dtype = xp.result_type(x.dtype, weight.dtype)
    else:
        out_dtype = x.dtype
    factor = along_last(xp.astype(weight, compute) + offset, x)
    return xp.astype(xp.astype(normed, compute) * factor, out_dtype)


def add_rms_norm(
    x: Any, residual: Any, weight: Any | None, *, eps: float, offset: float, casting: str
) -> tuple[Any, Any]:
    """s = x + residual in their dtype; returns (rms_norm(s), s)."""
    total = x + residual
    return rms_norm(total, weight, eps=eps, offset=offset, casting=casting), total

"""Layer normalisation."""

from __future__ import annotations

from typing import Any

from liger.reference.common import along_last, compute_dtype, namespace


def layer_norm(x: Any, weight: Any | None, bias: Any | None, *, eps: float) -> Any:
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last axis (Ba et al., arXiv:1607.06450).

    var is the mean of the squared deviations. The result is rounded once, to x's dtype.
    """
    xp = namespace(x)
    compute = compute_dtype(x)
    wide = xp.astype(x, compute)
    centred = wide - xp.mean(wide, axis=-1, keepdims=True)
    y = centred * (1 / xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + eps))
    if weight is not None:
        y = y * along_last(xp.astype(weight, compute), x)
    if bias is not None:
        y = y + along_last(xp.astype(bias, compute), x)
    return xp.astype(y, x.dtype)


def add_layer_norm(
    x: Any, residual: Any, weight: Any | None, bias: Any | None, *, eps: float
) -> tuple[Any, Any]:
    """s = x + residual in their dtype; returns (layer_norm(s), s)."""
    total = x + residual
    return layer_norm(total, weight, bias, eps=eps), total

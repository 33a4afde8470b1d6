"""Softmax and sparsemax over the last axis."""

from __future__ import annotations

from typing import Any

from liger.reference.common import compute_dtype, namespace, stop_gradient


def softmax(x: Any) -> Any:
    """y_i = exp(x_i - max x) / sum_j exp(x_j - max x)."""
    xp = namespace(x)
    wide = xp.astype(x, compute_dtype(x))
    y = xp.exp(wide - stop_gradient(xp.max(wide, axis=-1, keepdims=True)))
    return xp.astype(y / xp.sum(y, axis=-1, keepdims=True), x.dtype)


def sparsemax(x: Any) -> Any:
    """The point of the probability simplex nearest to x (Martins & Astudillo, arXiv:1602.02068).

    y_i = max(x_i - tau, 0) with tau such that sum_i y_i = 1. With x sorted from the highest down, tau is the largest of
    (sum_{j <= k} x_j - 1) / k over all k.
    """
    xp = namespace(x)
    wide = xp.astype(x, compute_dtype(x))
    ordered = xp.sort(stop_gradient(wide), axis=-1, descending=True)
    highest = ordered[..., :1]
    ordered = ordered - highest
    # Relative to the highest number, as all below: tau itself would round the sum away where numbers are large.
    # Of one row: XLA computes what is constant when it compiles, which takes minutes for a whole array.
    k = xp.cumulative_sum(xp.ones_like(ordered[(slice(0, 1),) * (x.ndim - 1)]), axis=-1)
    tau = xp.max((xp.cumulative_sum(ordered, axis=-1) - 1) / k, axis=-1, keepdims=True)
    # The sum over the support is formed again: its gradient is that of y, and it takes away the rounding of tau.
    difference = (wide - highest) - tau
    zero = xp.zeros_like(difference)
    inside = difference > 0
    total = xp.sum(xp.where(inside, difference, zero), axis=-1, keepdims=True)
    rest = (total - 1) / xp.sum(xp.astype(inside, wide.dtype), axis=-1, keepdims=True)
    return xp.astype(xp.where(difference <= rest, zero, difference - rest), x.dtype)

"""Group normalisation."""

from __future__ import annotations

from typing import Any

from liger.reference.common import compute_dtype, namespace


def group_norm(
    x: Any, weight: Any | None, bias: Any | None, *, num_groups: int, eps: float, channels_last: bool
) -> Any:
    """y = (x - mean) / sqrt(var + eps) * weight + bias, over each group of channels of each image.

    x is (images, channels, positions), or (images, positions, channels) with `channels_last`; mean and var, the mean of
    the squared deviations, are over all positions of a group of neighbouring channels, weight and bias one number per
    channel. The result is rounded once, to x's dtype. Wu & He, arXiv:1803.08494.
    """
    xp = namespace(x)
    compute = compute_dtype(x)
    images, first, second = x.shape
    if channels_last:
        grouped, inside = (images, first, num_groups, second // num_groups), (1, 3)
    else:
        grouped, inside = (images, num_groups, first // num_groups, second), (2, 3)
    wide = xp.reshape(xp.astype(x, compute), grouped)
    centred = wide - xp.mean(wide, axis=inside, keepdims=True)
    y = centred * (1 / xp.sqrt(xp.mean(centred * centred, axis=inside, keepdims=True) + eps))
    y = xp.reshape(y, x.shape)

    def along_channels(vector: Any) -> Any:
        return xp.reshape(xp.astype(vector, compute), (1, 1, second) if channels_last else (1, first, 1))

    if weight is not None:
        y = y * along_channels(weight)
    if bias is not None:
        y = y + along_channels(bias)
    return xp.astype(y, x.dtype)

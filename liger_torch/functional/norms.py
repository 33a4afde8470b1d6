"""Normalisation."""

from __future__ import annotations

import math

import torch

from liger_torch.autograd import call
from liger_triton import group_norm, layer_norm, rms_norm

# What the ops' arguments are called here. Operands keep the ops' names, which say more than X, W, R and B, and which
# those of the modules resemble.
_NAMES = {"casting": "casting_mode"}


def liger_rms_norm(
    X: torch.Tensor,
    W: torch.Tensor | None,
    eps: float = 1e-6,
    offset: float = 0.0,
    casting_mode: str = "llama",
    in_place: bool = False,
) -> torch.Tensor:
    """y = x / sqrt(mean(x^2) + eps) * (offset + w), over the last axis (Zhang & Sennrich, arXiv:1910.07467).

    Args:
        X: (..., hidden).
        W: (hidden,), or None for no weight.
        eps: added to the mean square.
        offset: added to the weight; 1.0 for Gemma.
        casting_mode: where the result is rounded to X's dtype. "llama": before the weight, the result then having the
            common dtype of X and W, as in Hugging Face's Llama. "gemma" and "none": after it.
        in_place: the backward pass may write the gradient of X over that of y. Only for a y whose gradient nothing
            else reads: not for one that enters an addition, whose gradient both terms are handed.

    Returns:
        (..., hidden).

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: W does not have X's last axis; an unknown casting_mode.
    """
    (y,) = call(rms_norm.RMS_NORM, (eps, offset, casting_mode, in_place), X, W, names=_NAMES)
    assert y is not None
    return y


def liger_fused_add_rms_norm(
    X: torch.Tensor,
    R: torch.Tensor,
    W: torch.Tensor | None,
    eps: float = 1e-6,
    offset: float = 0.0,
    casting_mode: str = "llama",
    in_place: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """s = x + r; returns (rms_norm(s), s), in one pass over memory.

    Args:
        X: (..., hidden).
        R: the residual stream, of X's shape and dtype.
        W: (hidden,), or None for no weight.
        eps: as in `liger_rms_norm`.
        offset: as in `liger_rms_norm`.
        casting_mode: as in `liger_rms_norm`.
        in_place: as in `liger_rms_norm`.

    Returns:
        The normalised sum and the sum, rounded to X's dtype before it is normalised.

    Raises:
        TypeError: dtypes that differ or are not supported.
        ValueError: shapes that differ; an unknown casting_mode.
    """
    y, total = call(rms_norm.ADD_RMS_NORM, (eps, offset, casting_mode, in_place), X, R, W, names=_NAMES)
    assert y is not None and total is not None
    return y, total


def liger_layer_norm(
    X: torch.Tensor, W: torch.Tensor | None, B: torch.Tensor | None, eps: float = 1e-6
) -> torch.Tensor:
    """y = (x - mean(x)) / sqrt(var(x) + eps) * w + b, over the last axis (Ba, Kiros & Hinton, arXiv:1607.06450).

    What `torch.nn.functional.layer_norm` computes over one axis. W and B need not have X's dtype, nor each other's.

    Args:
        X: (..., hidden).
        W: (hidden,), or None for no weight.
        B: (hidden,), or None for no bias.
        eps: added to the variance, the mean of the squared deviations.

    Returns:
        (..., hidden), in X's dtype, rounded once.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: W or B does not have X's last axis.
    """
    (y,) = call(layer_norm.LAYER_NORM, (eps,), X, W, B)
    assert y is not None
    return y


def liger_fused_add_layer_norm(
    X: torch.Tensor, R: torch.Tensor, W: torch.Tensor | None, B: torch.Tensor | None, eps: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]:
    """s = x + r; returns (layer_norm(s), s), in one pass over memory.

    Args:
        X: (..., hidden).
        R: the residual stream, of X's shape and dtype.
        W: (hidden,), or None for no weight.
        B: (hidden,), or None for no bias.
        eps: as in `liger_layer_norm`.

    Returns:
        The normalised sum and the sum, rounded to X's dtype before it is normalised.

    Raises:
        TypeError: dtypes that differ or are not supported.
        ValueError: shapes that differ.
    """
    y, total = call(layer_norm.ADD_LAYER_NORM, (eps,), X, R, W, B)
    assert y is not None and total is not None
    return y, total


def liger_group_norm(
    X: torch.Tensor,
    affine_weight: torch.Tensor | None,
    affine_bias: torch.Tensor | None,
    num_channels: int,
    num_groups: int,
    eps: float = 1e-6,
) -> torch.Tensor:
    """y = (x - mean) / sqrt(var + eps) * w + b, over each group of neighbouring channels (Wu & He, arXiv:1803.08494).

    What `torch.nn.functional.group_norm` computes, with inputs in torch.channels_last as well as contiguous ones read
    as they lie; the result has the input's memory format.

    Args:
        X: (N, C, *).
        affine_weight: (C,), or None for no weight. It need not have X's dtype.
        affine_bias: (C,), or None for no bias. It need not have X's dtype.
        num_channels: C.
        num_groups: a divisor of C.
        eps: added to the variance, the mean of the squared deviations.

    Returns:
        (N, C, *), in X's dtype, rounded once.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: X has not num_channels channels, num_groups does not divide them, or a weight or bias of another
            shape.
    """
    if X.dim() < 2 or X.shape[1] != num_channels:
        raise ValueError(
            f"group_norm: X has shape {tuple(X.shape)}; expected (N, {num_channels}, *), as num_channels is "
            f"{num_channels}."
        )
    last = _channels_last(X)
    # Either way a view, and (images, channels, positions) or (images, positions, channels) to the op.
    ordered = X.movedim(1, -1) if last else X
    positions = math.prod(X.shape[2:])
    flat = ordered.reshape(X.shape[0], *((positions, num_channels) if last else (num_channels, positions)))
    options = group_norm.Options(num_groups=num_groups, eps=eps, channels_last=last)
    (y,) = call(group_norm.GROUP_NORM, options, flat, affine_weight, affine_bias)
    assert y is not None
    y = y.reshape(ordered.shape)
    return y.movedim(-1, 1) if last else y


def _channels_last(x: torch.Tensor) -> bool:
    """Whether an image or volume lies in memory by position."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if x.dim() not in formats or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=formats[x.dim()])

"""Rotary position embedding."""

from __future__ import annotations

import torch

from liger_torch.autograd import call
from liger_triton import rope


def liger_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    unsqueeze_dim: int = 1,
    *,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary position embedding of q and k in one launch (Su et al., arXiv:2104.09864).

    With pairs (x1, x2) of a head's first rotary_dim entries, rotary_dim being the last axis of cos:

        y1 = x1 * cos1 - x2 * sin1
        y2 = x2 * cos2 + x1 * sin2

    Entries beyond rotary_dim pass unchanged. Strided q and k (transposed views, slices) are read without a copy.

    Args:
        q: (batch, heads, seq, head_dim), or (batch, seq, heads, head_dim) with unsqueeze_dim=2.
        k: like q, with its own number of heads.
        cos: (batch or 1, seq, rotary_dim), or (seq, rotary_dim). A table of positions (positions, rotary_dim) if
            `position_ids` are given.
        sin: like cos.
        position_ids: (batch or 1, seq): rows of the tables.
        unsqueeze_dim: the axis of the heads: 1 or 2.
        interleaved: pairs are neighbours (GPT-J, Cohere, GLM) instead of the two halves (Llama).

    Returns:
        The rotated q and k, in the shapes given.

    Raises:
        TypeError: dtypes that differ or are not supported.
        ValueError: shapes that do not fit; cos or sin that require a gradient; position_ids beside tables that
            are laid out by position already.
    """
    if unsqueeze_dim not in (1, 2):
        raise ValueError(f"rope: unsqueeze_dim is {unsqueeze_dim}; it must be 1 or 2, the axis of the heads.")
    if position_ids is not None:
        if cos.dim() != 2:
            raise ValueError(
                f"rope: position_ids were given, but cos has shape {tuple(cos.shape)}, which is laid out by position "
                "already; leave position_ids out, or pass tables of shape (positions, rotary_dim)."
            )
        cos, sin = cos[position_ids], sin[position_ids]
    if cos.dim() == 2:
        cos, sin = cos.unsqueeze(0), sin.unsqueeze(0)
    if unsqueeze_dim == 1:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    rotated_q, rotated_k = call(rope.ROPE, rope.Options(interleaved=interleaved), q, k, cos, sin)
    assert rotated_q is not None and rotated_k is not None
    if unsqueeze_dim == 1:
        rotated_q, rotated_k = rotated_q.transpose(1, 2), rotated_k.transpose(1, 2)
    return rotated_q, rotated_k

"""What the forward and the backward pass of QK norm and RoPE share: options, tables, tiles, weights and angles."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import triton
import triton.language as tl

from liger.launch import Spec
from liger_triton.pairs import _load_pairs

# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def load_weight(
    ptr,
    offset: tl.constexpr,
    half: tl.constexpr,
    n_pairs: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """What the members of every pair are multiplied with, (1, 1, PAIRS)."""
    always = tl.full((1, 1, 1), True, tl.int1)
    w1, w2 = _load_pairs(ptr + tl.zeros((1, 1, 1), tl.int32), always, 0.0, half, n_pairs, PAIRS, INTERLEAVED)
    return w1 + offset, w2 + offset


@triton.jit
def load_angles(
    cos_ptr, sin_ptr, row, here, half: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr
):
    """cos and sin of the members of every pair, (TOKENS, 1, PAIRS); pairs beyond `half` stay as they are."""
    cos1, cos2 = _load_pairs(cos_ptr + row, here, 1.0, half, half, PAIRS, INTERLEAVED)
    sin1, sin2 = _load_pairs(sin_ptr + row, here, 0.0, half, half, PAIRS, INTERLEAVED)
    return cos1, sin1, cos2, sin2


# --------------------------------------------------------------------------------------------------- launches


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """How heads are normalised and rotated.

    Attributes:
        eps: added to the mean square.
        offset: added to the weights (1.0 for Gemma).
        casting: where the norm's result is rounded to q's dtype: "llama" before the weight, "gemma" and "none" after
            it.
        interleaved: pairs are neighbours instead of the two halves.
    """

    eps: float = 1e-6
    offset: float = 0.0
    casting: str = "llama"
    interleaved: bool = False


class Tables(NamedTuple):
    """cos and sin as a launch sees them: shape and dtype of either, strides of batch and sequence axis in units."""

    spec: Spec
    strides: tuple[int, ...]
    unit: int

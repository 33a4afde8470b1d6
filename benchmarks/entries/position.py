"""Rotary position embedding."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.entry import Entry, Operands, draw
from liger_torch import functional as f
from liger_triton import rope


def entries() -> Iterator[Entry]:
    """RoPE of q and k as a Hugging Face model hands them over."""

    def operands() -> Operands:
        # Laid out by token, transposed by the model.
        q, k = draw(1, 8192, 32, 128).transpose(1, 2), draw(1, 8192, 8, 128).transpose(1, 2)
        cos = torch.randn(1, 8192, 128, device="cuda", dtype=torch.bfloat16)
        return q, k, cos, cos

    yield Entry("rope 8192 tokens, 32+8 heads of 128", rope.ROPE, rope.Options(), operands, f.liger_rope)

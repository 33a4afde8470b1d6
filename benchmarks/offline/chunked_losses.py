"""Memory of the chunked losses, planned on meta tensors."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.peak_memory import PeakMemory
from liger_torch import chunked_loss

LOSSES = ("DPO", "CPO", "SimPO", "ORPO", "KTO", "GRPO", "JSD", "Cosine")
HIDDEN = 4096


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16, trained: bool = False) -> torch.Tensor:
    """Shape and dtype alone."""
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=trained)


def of_a_step(name: str, pairs: int, tokens: int, vocab: int, **options: Any) -> int:
    """Bytes beyond inputs and gradients, forward and backward in bf16."""
    answers = 2 * pairs
    x, weight = meta(answers, tokens, HIDDEN, trained=True), meta(vocab, HIDDEN, trained=True)
    ids = meta(answers, tokens, dtype=torch.int64)
    teacher = (meta(answers, tokens, HIDDEN), meta(vocab, HIDDEN))
    if name == "KTO":
        options = {"use_ref_model": True} | options
    loss = getattr(chunked_loss, f"LigerFusedLinear{name}Loss")(**options)
    with PeakMemory() as memory:
        if name in ("JSD", "Cosine"):
            found = loss(x, weight, *teacher, ids)
        elif name == "GRPO":
            mask = meta(answers, tokens, dtype=torch.bool)
            found, _ = loss(x, weight, ids, mask, meta(answers), ref_input=teacher[0], ref_weight=teacher[1])
        elif name == "KTO":
            good = meta(answers, dtype=torch.bool)
            found, _ = loss(
                x, weight, ids, preference_labels=good, ref_input=teacher[0], ref_weight=teacher[1]
            )
        elif name == "DPO":
            found, _ = loss(weight, x, ids, None, *teacher)
        else:
            found, _ = loss(weight, x, ids)
        found.backward()
    return memory.peak - 2 * (x.numel() + weight.numel())

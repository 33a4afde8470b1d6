"""Log-probabilities and masks that the losses are tested on, and what TRL's trainers need to be called without a model."""

from __future__ import annotations

import importlib.util
import types

import pytest
import torch

needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="needs trl (the extra `peers`)"
)


PAIRS, TOKENS = 5, 9


SMOOTHING = {"exo_pair": 1e-3, "robust": 0.2, "aot": 0.1, "aot_unpaired": 0.1}


def draw(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def completions(pairs: int = PAIRS, tokens: int = TOKENS) -> torch.Tensor:
    """A mask of answers that begin and end at different places, padding on either side."""
    positions, rows = torch.arange(tokens), torch.arange(2 * pairs)[:, None]
    return (positions >= rows % 3) & (positions < tokens - rows % 4)


def same(ours: torch.Tensor, theirs: torch.Tensor, *inputs: torch.Tensor, tolerance: float = 1e-11) -> None:
    """Value and gradients."""
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


def recorder() -> types.SimpleNamespace:
    """What TRL's trainers ask of an accelerator, in one process."""
    return types.SimpleNamespace(
        device="cpu", num_processes=1, sync_gradients=True,
        gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x,
    )  # fmt: skip

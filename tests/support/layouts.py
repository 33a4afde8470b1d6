"""Ways in which the same numbers may lie in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch


def gaps(t: torch.Tensor) -> torch.Tensor:
    """Rows of a wider array."""
    if t.dim() == 0:
        return t
    return t.new_zeros(*t.shape[:-1], t.shape[-1] + 3)[..., 2:-1].copy_(t)


def transposed(t: torch.Tensor) -> torch.Tensor:
    """The last two axes the other way round in memory."""
    return t.mT.contiguous().mT if t.dim() > 1 else t


def every_second(t: torch.Tensor) -> torch.Tensor:
    """Every second element of an array twice as wide."""
    return torch.stack((t, torch.zeros_like(t)), -1)[..., 0]


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gaps": gaps,
    "transposed": transposed,
    "every-second": every_second,
}


def laid_out(t: torch.Tensor | None, layout: str) -> torch.Tensor | None:
    """The tensor's numbers in a leaf of that layout; "dense" is as it is."""
    if t is None or layout == "dense":
        return t
    return LAYOUTS[layout](t.detach()).requires_grad_(t.requires_grad)

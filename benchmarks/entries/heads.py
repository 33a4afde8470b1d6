"""What the entries of a language model's head have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.entry import draw

IGNORED = -100


def labels(n: int, vocab: int, half: bool = False) -> torch.Tensor:
    """Random labels; with `half` every other one is ignored."""
    found = torch.randint(0, vocab, (n,))
    if half:
        found[::2] = IGNORED
    return found


def head(n: int, h: int, v: int, frozen: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and a head's weight."""
    return draw(n, h), draw(v, h, scale=0.02).requires_grad_(not frozen)


def gradient_of_logits(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Not zeros: a product of zeros runs faster than one of numbers."""
    return x.new_empty(x.shape[0], w.shape[0]).normal_()


def products(
    x: torch.Tensor, w: torch.Tensor, frozen: bool = False, forward: bool = False
) -> Callable[[], object]:
    """The logits, and the gradients of x and of a head that is not frozen: two to three products, unchunked."""
    if forward:
        return lambda: x @ w.t()
    d = gradient_of_logits(x, w)
    return lambda: (x @ w.t(), d @ w) if frozen else (x @ w.t(), d @ w, d.t() @ x)


def plain_logp(x: torch.Tensor, w: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Of tokens under a head, whose logits are formed; in float32, or in float64 of operands in float64."""
    logits = F.linear(x, w)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(-1)

"""Softmax and sparsemax."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from benchmarks.entry import Entry, Operands, draw
from benchmarks.providers import EAGER, LIGER, liger, peer
from benchmarks.sizes import SIZES
from liger_torch import functional as f
from liger_triton import softmax


def _operands(n: int, width: int) -> Operands:
    return (draw(n, width),)


def _plain_sparsemax(x: torch.Tensor) -> torch.Tensor:
    """The projection onto the simplex (Martins & Astudillo, arXiv:1602.02068): max(x - tau, 0), tau by a sort.

    Sums are in float64: equal 16-bit numbers at the edge of the support lie in it or not by one rounding of float32.
    """
    ordered = x.double().sort(-1, descending=True).values
    ranks = torch.arange(1, x.shape[-1] + 1, device=x.device)
    sums = ordered.cumsum(-1) - 1.0
    support = (ordered * ranks > sums).sum(-1, keepdim=True)
    tau = sums.gather(-1, support - 1) / support
    inside = x.double() >= ordered.gather(-1, support - 1)
    return torch.where(inside, x.double() - tau, 0.0).to(x.dtype)


def entries() -> Iterator[Entry]:
    """Rows of a router, of attention scores and of a vocabulary."""
    liger_softmax, liger_sparsemax = liger("liger_softmax"), liger("liger_sparsemax")
    quack = peer("quack", "quack.softmax.softmax")
    for n, width in SIZES.softmax:
        yield Entry(
            f"softmax {n}x{width}",
            softmax.SOFTMAX,
            softmax.Options(),
            functools.partial(_operands, n, width),
            f.liger_softmax,
            {EAGER: lambda x: x.softmax(-1), LIGER: liger_softmax, "quack": quack},
        )
        yield Entry(
            f"sparsemax {n}x{width}",
            softmax.SPARSEMAX,
            softmax.Options(),
            functools.partial(_operands, n, width),
            f.liger_sparsemax,
            {EAGER: _plain_sparsemax, LIGER: liger_sparsemax},
            compiled=False,  # its sort is torch's own either way
        )

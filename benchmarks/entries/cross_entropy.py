"""Cross entropy of logits."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch.nn.functional as F

from benchmarks.entries.heads import labels
from benchmarks.entry import BOTH, FORWARD, Entry, Operands, draw
from benchmarks.providers import EAGER, FUSED, LIGER, liger, peer
from liger_torch import functional as f
from liger_triton import cross_entropy

TARGET = {32_000: 0.85, 128_256: 0.85, 256_000: 0.78}


def _logits(n: int, vocab: int, gradient: bool = True) -> Operands:
    return draw(n, vocab).requires_grad_(gradient), labels(n, vocab), None


def entries() -> Iterator[Entry]:
    """The heads of Llama 2 and 3 and of Gemma 2, with the gradient; and that of Llama 3 without, as in evaluation."""
    theirs = liger("liger_cross_entropy")
    quack = peer("quack", "quack.cross_entropy.cross_entropy")
    peers = {
        EAGER: lambda z, y, _: F.cross_entropy(z.float(), y),
        FUSED: lambda z, y, _: F.cross_entropy(z, y),
        LIGER: lambda z, y, _: theirs(z, y),
        "quack": lambda z, y, _: quack(z, y),
    }
    in_place = {"quack: in place": lambda z, y, _: quack(z, y, inplace_backward=True)}
    for n, v in ((8192, 128_256), (4096, 256_000), (16_384, 32_000), (1024, 128_256)):
        yield Entry(
            f"cross_entropy {n}x{v}",
            cross_entropy.CROSS_ENTROPY,
            cross_entropy.Options(),
            functools.partial(_logits, n, v),
            lambda z, y, _: f.liger_cross_entropy(z, y),
            peers | in_place,
            step=True,
            target={BOTH: TARGET[v]} if n > 1024 else {},
            ahead={(LIGER, BOTH): 2.0} if v == 128_256 else {},
            memory=v == 256_000,
        )
    n, v = 8192, 128_256
    yield Entry(
        f"cross_entropy {n}x{v}, forward only",
        cross_entropy.CROSS_ENTROPY,
        cross_entropy.Options(),
        functools.partial(_logits, n, v, gradient=False),
        lambda z, y, _: f.liger_cross_entropy(z, y),
        peers,
        target={FORWARD: 0.92},
    )

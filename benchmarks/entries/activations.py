"""Softmax and sparsemax."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from benchmarks.entry import Entry, Operands, draw, peer
from liger_torch import functional as f
from liger_triton import softmax

SIZES = ((262_144, 128), (16_384, 4096), (2048, 128_256))


def _operands(n: int, width: int) -> Operands:
    return (draw(n, width),)


def entries() -> Iterator[Entry]:
    """Rows of a router, of attention scores and of a vocabulary."""
    functions = "liger_kernel.transformers.functional"
    for n, width in SIZES:
        yield Entry(
            f"softmax {n}x{width}",
            softmax.SOFTMAX,
            softmax.Options(),
            functools.partial(_operands, n, width),
            f.liger_softmax,
            peer("liger-kernel", f"{functions}.liger_softmax"),
        )
        yield Entry(
            f"sparsemax {n}x{width}",
            softmax.SPARSEMAX,
            softmax.Options(),
            functools.partial(_operands, n, width),
            f.liger_sparsemax,
            peer("liger-kernel", f"{functions}.liger_sparsemax"),
        )

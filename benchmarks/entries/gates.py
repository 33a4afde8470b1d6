"""Gated activations."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.entry import Entry, draw, peer
from liger_torch import functional as f
from liger_triton import swiglu


def entries() -> Iterator[Entry]:
    """The MLP of Llama-3-8B."""
    yield Entry(
        "swiglu 8192x14336",
        swiglu.SWIGLU,
        swiglu.Options(),
        lambda: (draw(8192, 14_336), draw(8192, 14_336)),
        f.liger_swiglu,
        peer("liger-kernel", "liger_kernel.transformers.functional.liger_swiglu"),
    )

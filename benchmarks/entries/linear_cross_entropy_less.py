"""Cross entropy fused with the linear layer, where less is to be done: labels ignored, head frozen, forward only."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from benchmarks.entries.linear_cross_entropy import entry
from benchmarks.entry import Entry


def entries() -> Iterator[Entry]:
    """The heads of Llama 3 and Gemma 2 2B."""
    llama = functools.partial(entry, h=4096, v=128_256)
    yield llama(8192, half=True, target=0.92, ahead=2.8, memory=True)
    yield llama(8192, frozen=True, target=0.94, memory=True)
    yield llama(8192, forward=True, target=0.94, memory=True)
    yield llama(16_384, half=True, target=0.92)
    yield entry(8192, 2304, 256_000, half=True, target=0.92)

"""What is measured, one file per family."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.entries import (
    activations,
    divergences,
    embedding,
    gates,
    logprobs,
    losses,
    norms,
    position,
    quantised,
)
from benchmarks.entry import Entry

FAMILIES = (
    norms.entries,
    position.entries,
    gates.entries,
    activations.entries,
    embedding.entries,
    quantised.entries,
    losses.entries,
    logprobs.entries,
    divergences.entries,
)


def entries() -> Iterator[Entry]:
    """Every entry of every family."""
    for family in FAMILIES:
        yield from family()

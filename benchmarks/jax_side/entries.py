"""What is measured on JAX, one file per family."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from benchmarks.jax_side import divergences, gates, linear_losses, losses, norms, position, tables
from benchmarks.jax_side.entry import Entry
from benchmarks.sizes import SIZES, Sizes

FAMILIES = {
    "norms": norms.entries,
    "losses": losses.entries,
    "linear_losses": linear_losses.entries,
    "gates": gates.entries,
    "position": position.entries,
    "divergences": divergences.entries,
    "tables": tables.entries,
}


def entries(sizes: Sizes = SIZES) -> Iterator[tuple[str, Entry]]:
    """Every entry, with its family's name; its own name tells it from that of the op on torch."""
    for family, found in FAMILIES.items():
        for entry in found(sizes):
            yield family, dataclasses.replace(entry, name=f"{entry.name}, JAX")

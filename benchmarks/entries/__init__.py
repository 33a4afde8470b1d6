"""What is measured: one module per group of `benchmarks.groups`, each with `entries()`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence

from benchmarks.entry import Entry
from benchmarks.groups import GROUPS
from benchmarks.options import asked


def entries(groups: Sequence[str] = tuple(GROUPS), words: Sequence[str] = ()) -> Iterator[Entry]:
    """The entries of these groups whose name contains one of the words; all where there are none."""
    for group in groups:
        for entry in importlib.import_module(f"benchmarks.entries.{group}").entries():
            if asked(entry.name, words):
                yield entry

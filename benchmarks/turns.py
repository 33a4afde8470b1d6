"""Whose turn it is to take which set of operands."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

Call = TypeVar("Call")


def staggered(candidates: Mapping[str, Sequence[Call]]) -> dict[str, Iterator[Call]]:
    """For each candidate its calls, over and over, the first one of the second candidate being its second one.

    With candidates in turn, all of them beginning with the same operands, each would find in the cache what the one
    before it has just read.
    """
    return {
        name: itertools.cycle((*calls[i % len(calls) :], *calls[: i % len(calls)]))
        for i, (name, calls) in enumerate(candidates.items())
    }

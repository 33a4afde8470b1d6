"""Whose turn it is to take which set of operands, and how often; by either framework's clocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

Call = TypeVar("Call")

SAMPLES = 30

LONG_US = 1e5
LONG_SAMPLES = 10
"""Of calls that take longer than this on the device. A row says how many samples it has."""

BLOCK_US = 2000.0
"""A block of calls by the wall clock takes at least this long, so that waiting for the device does not count."""

LONG_BLOCK_US = 1e4
LONG_BLOCKS = 5
"""Of calls that take longer than this: of them the wall clock tells hardly more than the device's time."""


def samples_of(call_us: float) -> int:
    """How many samples of its time on the device a call of so many microseconds has."""
    return LONG_SAMPLES if call_us > LONG_US else SAMPLES


def blocks_of(call_us: float) -> tuple[int, int]:
    """How many blocks a call of so many microseconds has by the wall clock, and how many calls each."""
    return (LONG_BLOCKS if call_us > LONG_BLOCK_US else SAMPLES), max(1, int(BLOCK_US / max(call_us, 1.0)))


def rounds(times: Mapping[str, int]) -> list[str]:
    """The names in turn, each as often as it says."""
    return [name for i in range(max(times.values())) for name, n in times.items() if i < n]


def staggered(candidates: Mapping[str, Sequence[Call]]) -> dict[str, Iterator[Call]]:
    """For each candidate its calls, over and over, the first one of the second candidate being its second one.

    With candidates in turn, all of them beginning with the same operands, each would find in the cache what the one
    before it has just read.
    """
    return {
        name: itertools.cycle((*calls[i % len(calls) :], *calls[: i % len(calls)]))
        for i, (name, calls) in enumerate(candidates.items())
    }

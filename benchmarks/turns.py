"""Calls in turn: whose turn it is to take which set of operands, how often, and the wall clock's time.

For both frameworks: nothing here needs one. They bring `wait`, which waits for what a call returned.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from benchmarks.nvml import Monitor, Reading

T = TypeVar("T")

Calls = Sequence[Callable[[], Any]]
"""The same call of different operands."""
Wait = Callable[[Any], object]

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


def staggered(candidates: Mapping[str, Sequence[T]]) -> dict[str, Iterator[T]]:
    """For each candidate its calls, over and over, the first one of the second candidate being its second one.

    With candidates in turn, all of them beginning with the same operands, each would find in the cache what the one
    before it has just read.
    """
    return {
        name: itertools.cycle((*calls[i % len(calls) :], *calls[: i % len(calls)]))
        for i, (name, calls) in enumerate(candidates.items())
    }


def busy(intervals: Iterable[tuple[float, float]]) -> float:
    """The time that at least one of the intervals (start, end) covers: kernels of two streams may overlap."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def run_all(calls: Iterable[Callable[[], Any]], wait: Wait) -> None:
    """Call one after the other, what one returned dropped before the next, and wait once."""
    last = None
    for call in calls:
        last = None
        last = call()
    wait(last)


def warm(calls: Calls, wait: Wait) -> float:
    """Run all of them; about how many microseconds one takes."""
    run_all(calls, wait)
    start = time.perf_counter()
    run_all(calls, wait)
    return (time.perf_counter() - start) / len(calls) * 1e6


def wall_times(
    candidates: Mapping[str, Calls], around: Mapping[str, float], monitor: Monitor, wait: Wait
) -> tuple[dict[str, list[float]], dict[str, list[Reading]]]:
    """Microseconds of a call, block by block, and how the GPU was after each block; a call takes `around` so many."""
    wall: dict[str, list[float]] = {name: [] for name in candidates}
    readings: dict[str, list[Reading]] = {name: [] for name in candidates}
    turns = staggered(candidates)
    blocks = {name: blocks_of(us) for name, us in around.items()}
    for name in rounds({name: n for name, (n, _) in blocks.items()}):
        _, n = blocks[name]
        wait(None)
        start = time.perf_counter()
        run_all(itertools.islice(turns[name], n), wait)
        wall[name].append((time.perf_counter() - start) / n * 1e6)
        if reading := monitor.read():
            readings[name].append(reading)
    return wall, readings

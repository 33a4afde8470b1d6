"""Time on the device and by the wall clock, of several candidates in turn, for either framework.

Candidates take turns, so that a clock that drifts hits them all, and each round in another order: what a call leaves in
the cache unwritten costs the next one, so that no candidate may always stand behind the same one. Each call takes the
next one of several sets of operands, together larger than the cache, and never the set that was read just before.
What is compared with matrix products is called twice at every turn, and the second call is timed on the device: at the
limit of its power a GPU has another clock behind a copy than behind products, and a call is to have the clock that it
sets itself.

A framework brings `Wait`, which waits for what a call returned, and `OnDevice`, which finds by its profiler the time in
which at least one kernel of a call ran.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from benchmarks.nvml import Monitor, Reading, middle
from benchmarks.phases import Phases
from benchmarks.providers import note_of
from benchmarks.rows import Row, Spread, show

T = TypeVar("T")

Calls = Sequence[Callable[[], Any]]
"""The same call of different operands."""
Wait = Callable[[Any], object]
OnDevice = Callable[[Mapping[str, Calls], Sequence[tuple[str, bool]]], dict[str, tuple[list[float], int]]]
"""(candidates, their names as they are to be called, each with whether that call is timed) -> microseconds of each call
that is timed and the number of kernels of one; without those that the profiler did not see."""

CACHES = 3
"""Operands of all calls together are at least so many times the size of the cache."""
MOST_SETS = 32
"""Of operands that are so small that more would not reach it soon."""

SAMPLES = 30

LONG_US = 1e5
LONG_SAMPLES = 10
"""Of calls that take longer than this on the device. A row says how many samples it has."""

BLOCK_US = 2000.0
"""A block of calls by the wall clock takes at least this long, so that waiting for the device does not count."""

LONG_BLOCK_US = 1e4
LONG_BLOCKS = 5
"""Of calls that take longer than this: of them the wall clock tells hardly more than the device's time."""


@dataclasses.dataclass(frozen=True)
class Times:
    """Of one candidate.

    Attributes:
        device: on the device; None where the profiler saw nothing.
        wall: by the wall clock.
        reading: clock, power and temperature.
        kernels: of a call, as the profiler saw them.
    """

    device: Spread | None
    wall: Spread
    reading: Reading | None
    kernels: int = 0

    @property
    def best(self) -> Spread:
        """On the device where it is known."""
        return self.device or self.wall

    def row(self, entry: str, provider: str, which: str, of: str, ceiling: Spread, **more: Any) -> Row:
        """A row with them."""
        reading = self.reading._asdict() if self.reading else {}
        return Row(
            entry,
            provider,
            which,
            self.best,
            self.wall,
            of,
            ceiling.median,
            ceiling=ceiling,
            **reading,
            **more,
        )


def draws(draw: Callable[[int], T], size: Callable[[T], int], cache: int) -> list[T]:
    """Sets of operands, the i-th one `draw(i)`, until a call finds nothing of its own in a cache of so many bytes."""
    found = [draw(0)]
    of_one = size(found[0])
    while len(found) * of_one < CACHES * cache and len(found) < MOST_SETS:
        found.append(draw(len(found)))
    return found


def samples_of(call_us: float) -> int:
    """How many samples of its time on the device a call of so many microseconds has."""
    return LONG_SAMPLES if call_us > LONG_US else SAMPLES


def blocks_of(call_us: float) -> tuple[int, int]:
    """How many blocks a call of so many microseconds has by the wall clock, and how many calls each."""
    return (LONG_BLOCKS if call_us > LONG_BLOCK_US else SAMPLES), max(1, int(BLOCK_US / max(call_us, 1.0)))


def rounds(times: Mapping[T, int]) -> list[T]:
    """The names round by round, each as often as it says; every round in an order of its own, the same in every run."""
    draw = random.Random(0)
    found = []
    for i in range(max(times.values())):
        names = [name for name, n in times.items() if i < n]
        draw.shuffle(names)
        found += names
    return found


def turns_of(samples: Mapping[str, int], settled: bool) -> list[tuple[str, bool]]:
    """The names round by round, each with whether that call is timed; `settled`: behind one of its own that is not."""
    once = (False, True) if settled else (True,)
    return [(name, timed) for name in rounds(samples) for timed in once]


class Rotation(Generic[T]):
    """The calls of candidates, each with other operands than the call before."""

    def __init__(self, candidates: Mapping[str, Sequence[T]]) -> None:
        self._candidates = candidates
        self._count = 0

    def next(self, name: str) -> T:
        """A call of this candidate."""
        calls: Sequence[T] = self._candidates[name]
        self._count += 1
        return calls[self._count % len(calls)]


def busy(intervals: Iterable[tuple[float, float]]) -> float:
    """The time that at least one of the intervals (start, end) covers: kernels of two streams may overlap."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def sampled(
    order: Sequence[tuple[str, bool]], calls: Sequence[Sequence[tuple[float, float]]]
) -> dict[str, tuple[list[float], int]]:
    """By name, how long the device was busy in each call that is timed, and the number of kernels of one.

    Args:
        order: as of `turns_of`.
        calls: the intervals of the kernels of each call in that order.
    """
    found: dict[str, tuple[list[float], int]] = {}
    for (name, timed), kernels in zip(order, calls, strict=True):
        if timed:
            times, _ = found.get(name, ([], 0))
            found[name] = ([*times, busy(kernels)], len(kernels))
    return found


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
    taken = Rotation(candidates)
    blocks = {name: blocks_of(us) for name, us in around.items()}
    for name in rounds({name: n for name, (n, _) in blocks.items()}):
        _, n = blocks[name]
        wait(None)
        start = time.perf_counter()
        run_all([taken.next(name) for _ in range(n)], wait)
        wall[name].append((time.perf_counter() - start) / n * 1e6)
        if reading := monitor.read():
            readings[name].append(reading)
    return wall, readings


def measure(
    candidates: Mapping[str, Calls],
    monitor: Monitor,
    phases: Phases,
    wait: Wait,
    on_device: OnDevice,
    settled: bool,
) -> dict[str, Times]:
    """Each candidate's times; `settled`: as of `turns_of`."""
    with phases.of("warm-up"):
        around = {name: warm(calls, wait) for name, calls in candidates.items()}
    with phases.of("wall clock"):
        wall, readings = wall_times(candidates, around, monitor, wait)
    with phases.of("device"):
        samples = {name: samples_of(us) for name, us in around.items()}
        device = on_device(candidates, turns_of(samples, settled))
    found = {}
    for name in candidates:
        times, kernels = device.get(name, ([], 0))
        spread = Spread.of(times) if times else None
        found[name] = Times(spread, Spread.of(wall[name]), middle(readings[name]), kernels)
    return found


def gather(entry: str, found: Iterable[Row], rows: list[Row]) -> None:
    """Print the rows of an entry and add them; one that needs more memory than there is does not stop the rest."""
    try:
        for row in found:
            print(show(row), flush=True)
            rows.append(row)
    except Exception as failure:
        rows.append(Row(entry, "ours", "", note=note_of(failure)))
        print(show(rows[-1]), flush=True)

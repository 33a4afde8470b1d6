"""Time on the device and by the wall clock, of several candidates in turn, for either framework.

Candidates take turns, so that a clock that drifts hits them all. Each call takes the next one of several sets of
operands, together larger than the cache, and never the set that the candidate before has just read.

A framework brings `Wait`, which waits for what a call returned, and `OnDevice`, which finds by its profiler the time in
which at least one kernel of a call ran.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from benchmarks.nvml import Monitor, Reading, middle
from benchmarks.phases import Phases
from benchmarks.rows import Row, Spread

T = TypeVar("T")

Calls = Sequence[Callable[[], Any]]
"""The same call of different operands."""
Wait = Callable[[Any], object]
OnDevice = Callable[[Mapping[str, Calls], Mapping[str, int]], dict[str, tuple[list[float], int]]]
"""(candidates, how many samples of each) -> microseconds of each sample and the number of kernels of a call; without
those that the profiler did not see."""

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

    def row(self, entry: str, provider: str, which: str, of: str, ceiling_us: float, **more: Any) -> Row:
        """A row with them."""
        reading = self.reading._asdict() if self.reading else {}
        return Row(entry, provider, which, self.best, self.wall, of, ceiling_us, **reading, **more)


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


def measure(
    candidates: Mapping[str, Calls], monitor: Monitor, phases: Phases, wait: Wait, on_device: OnDevice
) -> dict[str, Times]:
    """Each candidate's times."""
    with phases.of("warm-up"):
        around = {name: warm(calls, wait) for name, calls in candidates.items()}
    with phases.of("wall clock"):
        wall, readings = wall_times(candidates, around, monitor, wait)
    with phases.of("device"):
        device = on_device(candidates, {name: samples_of(us) for name, us in around.items()})
    found = {}
    for name in candidates:
        times, kernels = device.get(name, ([], 0))
        spread = Spread.of(times) if times else None
        found[name] = Times(spread, Spread.of(wall[name]), middle(readings[name]), kernels)
    return found

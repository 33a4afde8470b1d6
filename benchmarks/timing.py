"""Time on the device and by the wall clock, of several candidates in turn.

Candidates take turns, so that a clock that drifts hits them all. Each call takes the next one of several sets of
operands, together larger than the cache, and never the set that the candidate before has just read.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.nvml import Monitor, Reading, middle
from benchmarks.phases import Phases
from benchmarks.rows import Spread
from benchmarks.turns import blocks_of, rounds, samples_of, staggered

Calls = Sequence[Callable[[], object]]
"""The same call of different operands."""

MARK = "spin_kernel"
"""The kernel of torch.cuda._sleep: it parts the calls in what the profiler finds."""


@dataclasses.dataclass(frozen=True)
class Times:
    """Of one candidate."""

    device: Spread
    wall: Spread
    reading: Reading | None


def busy(intervals: Iterable[tuple[int, int]]) -> int:
    """The time that at least one of the intervals (start, end) covers: kernels of two streams may overlap."""
    total, until = 0, 0
    for start, end in sorted(intervals):
        total += max(0, end - max(start, until))
        until = max(until, end)
    return total


def _warm(calls: Calls) -> float:
    """Run all of them; about how many microseconds one takes."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for call in calls:
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / len(calls) * 1e6


def device_times(candidates: Mapping[str, Calls], samples: Mapping[str, int]) -> dict[str, list[float]]:
    """Microseconds on the device of each call, found by the profiler."""
    turns = staggered(candidates)
    order = rounds(samples)
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        torch.cuda._sleep(1)
        for name in order:
            next(turns[name])()
            torch.cuda._sleep(1)
        torch.cuda.synchronize()
    events = sorted(
        (e.start_ns(), e.start_ns() + e.duration_ns(), MARK in e.name())
        for e in found.profiler.kineto_results.events()
        if e.device_type() == DeviceType.CUDA and e.duration_ns() > 0
    )
    calls: list[list[tuple[int, int]]] = []
    for start, end, mark in events:
        if mark:
            calls.append([])
        elif calls:
            calls[-1].append((start, end))
    if len(calls) != len(order) + 1:
        raise RuntimeError(f"the profiler lost events: {len(calls)} marks of {len(order) + 1}")
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for name, kernels in zip(order, calls, strict=False):
        times[name].append(busy(kernels) / 1e3)
    return times


def wall_times(
    candidates: Mapping[str, Calls], around: Mapping[str, float], monitor: Monitor
) -> tuple[dict[str, list[float]], dict[str, list[Reading]]]:
    """Microseconds by the wall clock of a call, block by block, and how the GPU was after each block."""
    wall: dict[str, list[float]] = {name: [] for name in candidates}
    readings: dict[str, list[Reading]] = {name: [] for name in candidates}
    turns = staggered(candidates)
    blocks = {name: blocks_of(us) for name, us in around.items()}
    for name in rounds({name: n for name, (n, _) in blocks.items()}):
        _, n = blocks[name]
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(n):
            next(turns[name])()
        torch.cuda.synchronize()
        wall[name].append((time.perf_counter() - start) / n * 1e6)
        if reading := monitor.read():
            readings[name].append(reading)
    return wall, readings


def measure(candidates: Mapping[str, Calls], monitor: Monitor, phases: Phases) -> dict[str, Times]:
    """Each candidate's times."""
    with phases.of("warm-up"):
        around = {name: _warm(calls) for name, calls in candidates.items()}
    with phases.of("wall clock"):
        wall, readings = wall_times(candidates, around, monitor)
    with phases.of("device"):
        device = device_times(candidates, {name: samples_of(us) for name, us in around.items()})
    return {
        name: Times(Spread.of(device[name]), Spread.of(wall[name]), middle(readings[name]))
        for name in candidates
    }


class Copy:
    """A copy of 2 GB (half of it read, half written), the ceiling of what moves bytes."""

    def __init__(self) -> None:
        self._source = torch.empty(2**29, dtype=torch.bfloat16, device="cuda").normal_()
        self._target = torch.empty_like(self._source)

    def __call__(self) -> object:
        return self._target.copy_(self._source)

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return 2 * self._source.nbytes

    def rate(self, monitor: Monitor) -> float:
        """Bytes per microsecond."""
        return self.moved / measure({"copy": [self]}, monitor, Phases())["copy"].device.median

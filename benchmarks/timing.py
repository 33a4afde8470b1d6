"""Time on the device and by the wall clock, of several candidates in turn.

Candidates take turns, so that a clock that drifts hits them all. Each call takes the next one of several sets of
operands, together larger than the cache, and never the set that the candidate before has just read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.nvml import Monitor, Reading, middle
from benchmarks.phases import Phases
from benchmarks.rows import Spread
from benchmarks.turns import Calls, busy, rounds, samples_of, staggered, wall_times, warm

MARK = "spin_kernel"
"""The kernel of torch.cuda._sleep: it parts the calls in what the profiler finds."""


@dataclasses.dataclass(frozen=True)
class Times:
    """Of one candidate."""

    device: Spread
    wall: Spread
    reading: Reading | None


def _wait(_: object) -> None:
    torch.cuda.synchronize()


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


def measure(candidates: Mapping[str, Calls], monitor: Monitor, phases: Phases) -> dict[str, Times]:
    """Each candidate's times."""
    with phases.of("warm-up"):
        around = {name: warm(calls, _wait) for name, calls in candidates.items()}
    with phases.of("wall clock"):
        wall, readings = wall_times(candidates, around, monitor, _wait)
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

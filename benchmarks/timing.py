"""Time on the device and by the wall clock, of several candidates in turn.

Candidates take turns, so that a clock that drifts hits them all. Each call takes the next one of several sets of
operands, together larger than the cache.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.rows import Spread

Calls = Sequence[Callable[[], object]]
"""The same call of different operands."""

SAMPLES = 30
BLOCK_US = 2000.0
"""A block of calls by the wall clock takes at least this long, so that waiting for the device does not count."""


def _kernels(calls: Calls, n: int) -> list[float]:
    """Microseconds on the device of each of n calls, found by the profiler."""
    turns = itertools.cycle(calls)
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(n):
            next(turns)()
        torch.cuda.synchronize()
    events = [
        (e.start_ns(), e.duration_ns())
        for e in found.profiler.kineto_results.events()
        if e.device_type() == DeviceType.CUDA and e.duration_ns() > 0
    ]
    durations = [d / 1e3 for _, d in sorted(events)]
    each, rest = divmod(len(durations), n)
    if rest:  # not every call launches the same kernels: their mean is all that is known
        return [sum(durations) / n] * n
    return [sum(durations[i * each : (i + 1) * each]) for i in range(n)]


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


def measure(candidates: Mapping[str, Calls]) -> dict[str, tuple[Spread, Spread]]:
    """For each candidate, time on the device and by the wall clock."""
    blocks = {name: max(1, int(BLOCK_US / max(_warm(calls), 1.0))) for name, calls in candidates.items()}
    wall: dict[str, list[float]] = {name: [] for name in candidates}
    device: dict[str, list[float]] = {name: [] for name in candidates}
    turns = {name: itertools.cycle(calls) for name, calls in candidates.items()}
    for _ in range(SAMPLES):
        for name, n in blocks.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(n):
                next(turns[name])()
            torch.cuda.synchronize()
            wall[name].append((time.perf_counter() - start) / n * 1e6)
    for _ in range(3):
        for name, calls in candidates.items():
            device[name] += _kernels(calls, SAMPLES // 3)
    return {name: (Spread.of(device[name]), Spread.of(wall[name])) for name in candidates}


def copy_rate() -> float:
    """Bytes per microsecond that a copy of 2 GB reads and writes."""
    source = torch.empty(2**30, dtype=torch.bfloat16, device="cuda").normal_()
    target = torch.empty_like(source)
    device, _ = measure({"copy": [lambda: target.copy_(source)]})["copy"]
    return 2 * source.nbytes / device.median

"""`benchmarks.turns` for compiled programs of JAX.

JAX has no events to time a stream with. On the device a call's time is that in which one of its kernels or copies ran,
as the profiler (CUPTI) saw it, and what the host needs to start them does not count. By the wall clock it is that of a
block of calls queued one after the other, over their number: what a loop of steps would see, the host's work included
where it takes longer than the device's.
"""

from __future__ import annotations

import glob
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from benchmarks import turns
from benchmarks.nvml import Monitor
from benchmarks.phases import Phases
from benchmarks.rows import Spread
from benchmarks.turns import Calls, Rotation, Times, busy, sampled

APART_US = 1500.0
"""The host waits so long between calls that are profiled: a gap of half of that is one between calls."""


Interval = tuple[float, float]
"""Start and end of a kernel or copy, in microseconds."""


def _device_intervals(trace: bytes) -> list[Interval]:
    """What ran on a GPU's streams, in order of its start."""
    data = jax.profiler.ProfileData.from_serialized_xspace(trace)
    found = []
    for plane in data.planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if line.name.startswith("Stream"):  # other lines are derived from these
                found += [(e.start_ns / 1e3, (e.start_ns + e.duration_ns) / 1e3) for e in line.events]
    return sorted(found)


def profiled(calls: Calls) -> list[Interval]:
    """Run the calls, the device idle for a while between them."""
    options = jax.profiler.ProfileOptions()
    options.host_tracer_level = 0
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder, profiler_options=options)
        try:
            for call in calls:
                jax.block_until_ready(call())
                time.sleep(APART_US / 1e6)
        finally:
            jax.profiler.stop_trace()
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        return _device_intervals(Path(path).read_bytes())


def groups(intervals: Sequence[Interval], gap: float) -> list[list[Interval]]:
    """Intervals that are apart by less than a gap, each group in order."""
    found: list[list[Interval]] = []
    end = float("-inf")
    for interval in intervals:
        if interval[0] - end > gap:
            found.append([])
        found[-1].append(interval)
        end = max(end, interval[1])
    return found


def _on_device(
    candidates: Mapping[str, Calls], order: Sequence[tuple[str, bool]]
) -> dict[str, tuple[list[float], int]]:
    """Microseconds of each call of a candidate that is timed, and the number of kernels of one.

    Nothing of one that was not seen.
    """
    taken = Rotation(candidates)
    seen = groups(profiled([taken.next(name) for name, _ in order]), APART_US / 2)
    if not seen:
        return {}
    if len(seen) == len(order):
        return sampled(order, seen)
    found = {}
    for name, n in Counter(name for name, timed in order if timed).items():
        # One pauses, or was not recorded: their mean is all that is known.
        intervals = profiled([taken.next(name) for _ in range(n)])
        if intervals:
            found[name] = ([busy(intervals) / n], round(len(intervals) / n))
    return found


def measure(
    candidates: Mapping[str, Calls], monitor: Monitor, phases: Phases, settled: bool = False
) -> dict[str, Times]:
    """Each candidate's times; `settled`: as of `turns.turns_of`."""
    return turns.measure(candidates, monitor, phases, jax.block_until_ready, _on_device, settled)


COPIED = 2**32
"""Bytes that the copy reads and writes, half of them each."""


def copy_times(monitor: Monitor) -> Spread:
    """What a copy that XLA compiles takes."""
    source = jax.random.normal(jax.random.key(0, impl="unsafe_rbg"), (COPIED // 4,), jax.numpy.bfloat16)
    copy = jax.jit(jax.numpy.copy).lower(source).compile()
    return measure({"copy": [lambda: copy(source)]}, monitor, Phases())["copy"].best

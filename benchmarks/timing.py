"""`benchmarks.turns` for PyTorch, and the copy that is the ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import turns
from benchmarks.nvml import Monitor
from benchmarks.phases import Phases
from benchmarks.turns import Calls, Rotation, Times, sampled

MARK = "spin_kernel"
"""The kernel of torch.cuda._sleep: it parts the calls in what the profiler finds."""


def _wait(_: object) -> None:
    torch.cuda.synchronize()


def _on_device(
    candidates: Mapping[str, Calls], order: Sequence[tuple[str, bool]]
) -> dict[str, tuple[list[float], int]]:
    """Microseconds of each call of a candidate that is timed, and the number of kernels of one."""
    taken = Rotation(candidates)
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        torch.cuda._sleep(1)
        for name, _ in order:
            taken.next(name)()
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
    found_ns = sampled(order, calls[:-1])  # nothing follows the last mark
    return {name: ([ns / 1e3 for ns in times], n) for name, (times, n) in found_ns.items()}


def measure(
    candidates: Mapping[str, Calls], monitor: Monitor, phases: Phases, settled: bool = False
) -> dict[str, Times]:
    """Each candidate's times; `settled`: as of `turns.turns_of`."""
    return turns.measure(candidates, monitor, phases, _wait, _on_device, settled)


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
        return self.moved / measure({"copy": [self]}, monitor, Phases())["copy"].best.median

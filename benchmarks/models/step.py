"""Time and memory of a training step, and the losses of many."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.models import arms, data
from benchmarks.models.case import Case, Result
from benchmarks.models.shapes import SHAPES
from benchmarks.rows import Spread

WARM_UP = 3
PRODUCT = 8192
"""Rows and columns of the matrix product that says what the device does at that time."""

KERNELS = 40
"""How many are named in a profile."""


def device() -> str:
    """Where everything runs."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def limit_memory(case: Case) -> None:
    """Let torch take no more than the case says."""
    if case.memory_gb and device() == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, case.memory_gb * 1e9 / total))


class Training:
    """A model, its optimiser, and one batch."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.model = arms.build(case, device())
        self.optimizer = arms.optimizer_of(case, self.model)
        self.use(data.uniform(0, case.batch, case.sequence, SHAPES[case.model].vocab))

    def use(self, tokens: Any) -> None:
        """Train on these tokens (batch, sequence) from now on."""
        labels = data.labels_of(tokens, self.case.valid)
        self.tokens, self.labels = (torch.from_numpy(t).to(device()) for t in (tokens, labels))

    def step(self) -> torch.Tensor:
        """Forward, backward, update; the loss before the update, still on the device."""
        loss: torch.Tensor = self.model(input_ids=self.tokens, labels=self.labels, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def measured(case: Case) -> Result:
    """The result of a case of a step."""
    start = time.perf_counter()
    before = product_tflops()
    training = Training(case)
    losses = [training.step().item()]
    setup = time.perf_counter() - start
    for _ in range(WARM_UP - 1):
        training.step()
    reset_peak()
    step, wall = timed(training.step, case.steps)
    peak, reserved = peaks()
    busy, launches, kernels = profiled(training.step)
    flops = arms.model_flops(case, training.model)
    del training
    after = product_tflops()
    return Result(
        case,
        step=step,
        wall_ms=round(wall, 3),
        busy_ms=busy,
        launches=launches,
        peak_gb=peak,
        reserved_gb=reserved,
        tflops=flops / 1e12,
        product_tflops=(before, after),
        losses=tuple(losses),
        kernels=kernels if case.profile else (),
        setup_s=round(setup, 1),
    )


def curve(case: Case) -> Result:
    """The result of a case of a curve."""
    batches = data.walks(0, case.steps, case.batch, case.sequence, SHAPES[case.model].vocab)
    training = Training(case)
    losses = []
    for tokens in batches:
        training.use(tokens)
        losses.append(training.step())
    return Result(case, losses=tuple(torch.stack(losses).tolist()))


def timed(step: Callable[[], object], steps: int) -> tuple[Spread, float]:
    """Milliseconds from one end of a step to the next on the device's clock, and of all steps by the wall clock.

    Nobody waits for the device between the steps, as in a training that logs now and then.
    """
    if device() == "cpu":
        samples = []
        for _ in range(steps):
            start = time.perf_counter()
            step()
            samples.append((time.perf_counter() - start) * 1e3)
        return Spread.of(samples), sum(samples) / steps
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    torch.cuda.synchronize()
    start = time.perf_counter()
    ends[0].record()
    for end in ends[1:]:
        step()
        end.record()
    torch.cuda.synchronize()
    wall = (time.perf_counter() - start) * 1e3 / steps
    return Spread.of([a.elapsed_time(b) for a, b in itertools.pairwise(ends)]), wall


def profiled(
    step: Callable[[], object],
) -> tuple[float | None, int | None, tuple[tuple[str, int, float], ...]]:
    """Milliseconds in which the device computes, number of kernels and copies, and the longest of them by name."""
    if device() == "cpu":
        return None, None, ()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    times: dict[str, list[float]] = {}
    for event in found.profiler.kineto_results.events():
        if event.device_type() == DeviceType.CUDA and event.duration_ns() > 0:
            times.setdefault(event.name(), []).append(event.duration_ns() / 1e6)
    ranked = sorted(times.items(), key=lambda item: -sum(item[1]))
    kernels = tuple((name[:160], len(each), round(sum(each), 3)) for name, each in ranked[:KERNELS])
    each = [t for found_times in times.values() for t in found_times]
    return round(sum(each), 3), len(each), kernels


def reset_peak() -> None:
    """Forget the highest use of memory so far."""
    if device() == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def peaks() -> tuple[float | None, float | None]:
    """Memory allocated and reserved at most since then, in 1e9 bytes."""
    if device() == "cpu":
        return None, None
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return round(allocated / 1e9, 3), round(reserved / 1e9, 3)


def product_tflops() -> float:
    """Rate of a matrix product in bfloat16, the median of several."""
    size = PRODUCT if device() == "cuda" else 256
    a, b = (torch.randn(size, size, device=device(), dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)

    def product() -> None:
        torch.mm(a, b, out=out)

    for _ in range(5):
        product()
    times, _ = timed(product, 30)
    return 2 * size**3 / (times.median / 1e3) / 1e12

"""The longest context of which a step can be made, at batch one."""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.models import data, step
from benchmarks.models.case import MULTIPLE, TOLERANCE, Case, Result, ran_out_of_memory
from benchmarks.models.shapes import SHAPES

Probe = tuple[int, float | None, float]
"""Tokens, milliseconds of a step or None where it ran out of memory, and the peak in 1e9 bytes."""


def next_length(done: Sequence[Probe], capacity: float) -> int | None:
    """What to try next; None where the limit is known to `TOLERANCE`.

    Memory is very nearly a constant and a multiple of the tokens. So where two lengths fit, the next one is a little
    below that at which the line through them reaches the capacity (in 1e9 bytes), and then one a little above.
    """
    fitting = sorted(p for p in done if p[1] is not None)
    low = fitting[-1][0] if fitting else 0
    high = min((p[0] for p in done if p[1] is None), default=None)
    if high is not None and high - low <= max(MULTIPLE, TOLERANCE * low):
        return None
    guess = 2.0 * low if high is None else (low + high) / 2
    if len(fitting) > 1:
        (a, _, peak_a), (b, _, peak_b) = fitting[-2:]
        limit = b + (capacity - peak_b) * (b - a) / max(peak_b - peak_a, 1e-6)
        for aim in (limit * (1 - TOLERANCE / 2), limit * (1 + TOLERANCE / 2)):
            if low * (1 + TOLERANCE / 2) < aim < (math.inf if high is None else high):
                guess = aim
                break
    most = math.inf if high is None else high - MULTIPLE
    length = int(min(max(guess // MULTIPLE * MULTIPLE, low + MULTIPLE), most))
    return length if length > low else None


def search(probe: Callable[[int], Probe], first: int, capacity: float, seconds: float) -> list[Probe]:
    """Probes until the limit is known, or no longer one would end within the time that is left.

    A length that would take too long is made shorter: a longer context that fits is a result, too.

    Args:
        probe: makes a step of so many tokens.
        first: the first length.
        capacity: memory that there is, in 1e9 bytes.
        seconds: how long the search may take.
    """
    start = time.perf_counter()
    done = [probe(first)]
    while (length := next_length(done, capacity)) is not None:
        fitting = [(tokens, took) for tokens, took, _ in done if took is not None]
        if fitting:  # a step takes the square of its length at most
            longest, took = max(fitting)
            left = max(seconds - (time.perf_counter() - start), 0.0)
            length = min(length, int(longest * math.sqrt(left * 1e3 / took)) // MULTIPLE * MULTIPLE)
            if length <= longest:
                break
        done.append(probe(length))
    return done


def measured(case: Case) -> Result:
    """The result of a case of a longest context."""
    training = step.Training(dataclasses.replace(case, sequence=case.tokens))

    def attempt(tokens: int) -> bool:
        try:
            training.use(data.uniform(0, 1, tokens, SHAPES[case.model].vocab))
            training.step()
            return True
        except RuntimeError as failure:
            if not ran_out_of_memory(failure):
                raise
            return False

    def probe(tokens: int) -> Probe:
        step.reset_peak()
        start = time.perf_counter()
        fits = attempt(tokens)
        if step.device() == "cuda":
            torch.cuda.synchronize()
        took = round((time.perf_counter() - start) * 1e3, 1)
        peak, _ = step.peaks()
        if not fits:
            training.optimizer.zero_grad(set_to_none=True)
            gc.collect()
        if step.device() == "cuda":
            torch.cuda.empty_cache()
        return tokens, took if fits else None, peak or 0.0

    attempt(min(case.tokens, MULTIPLE))  # the optimiser's states are there from now on
    done = search(probe, case.tokens, case.memory_gb or capacity_gb(), case.seconds)
    fitting = [tokens for tokens, took, _ in done if took is not None]
    failing = [tokens for tokens, took, _ in done if took is None]
    return Result(
        case,
        fits=max(fitting, default=None),
        fails=min(failing, default=None),
        probes=tuple(done),
        note="" if fitting else "no length fits",
    )


def capacity_gb() -> float:
    """Memory that the allocator could use, in 1e9 bytes."""
    if step.device() == "cpu":
        return 1.0
    free, _ = torch.cuda.mem_get_info()
    return (free + torch.cuda.memory_reserved()) / 1e9

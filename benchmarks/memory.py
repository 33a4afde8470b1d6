"""`python -m benchmarks memory [WORD ...]`: peak memory of a step, each implementation in a fresh process.

Beyond the operands, with outputs and gradients, after a first step that compiles and tunes. Beside it stands the peak
that is planned without a GPU, on tensors of shapes alone, for what does not launch kernels by itself; without a GPU
that is all.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import gc
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.entries import entries
from benchmarks.entry import Entry
from benchmarks.memory_page import Peak, read_peak
from benchmarks.nvml import Monitor
from benchmarks.options import add_output, add_resume, check
from benchmarks.passes import step
from benchmarks.peak_memory import PeakMemory
from benchmarks.providers import EAGER, OF_TORCH, Absent, Function, absent, note_of, provider_of
from benchmarks.rows import Run, file_of, keep, load, measured_now
from benchmarks.run import functions_of

SECONDS = 240.0
"""After which one process is ended."""


def planned(entry: Entry, function: Function) -> float | None:
    """MB at most on shapes alone."""
    operands = entry.draw("meta")
    try:
        with PeakMemory() as memory:
            step(function, operands)
    except Exception:  # it launches kernels, or looks at numbers
        return None
    return memory.peak / 1e6


def measured(entry: Entry, function: Function) -> tuple[float, float]:
    """MB allocated and reserved, in this process."""
    operands = entry.draw("cuda")
    step(function, operands)
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = step(function, operands)
    torch.cuda.synchronize()
    peaks = torch.cuda.max_memory_allocated() - before, torch.cuda.max_memory_reserved() - before
    del kept
    return peaks[0] / 1e6, peaks[1] / 1e6


def chosen(words: Sequence[str], every: bool = False) -> Iterator[Entry]:
    """The entries whose memory matters, or every one, of those with one of the words."""
    for entry in entries(words=words):
        if every or entry.memory:
            yield entry


class Room:
    """Memory of the GPU, shared by processes that claim a part each."""

    def __init__(self, mb: float) -> None:
        self._free = self._all = mb
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def of(self, mb: float) -> Iterator[None]:
        """Wait until so much is free, or all of it where it is more."""
        mb = min(mb, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= mb)
            self._free -= mb
        try:
            yield
        finally:
            with self._changed:
                self._free += mb
                self._changed.notify_all()


def in_process(entry: str, provider: str, room: Room, claim_mb: float) -> dict[str, Any]:
    """Measured by a process of its own: peak_mb and reserved_mb, or a note."""
    command = [sys.executable, "-m", "benchmarks", "memory", "--of", entry, provider]
    with room.of(claim_mb):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return {"note": f"failed: more than {SECONDS:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        return {"note": f"failed: {said[:160]}"}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _of(name: str, provider: str) -> dict[str, Any]:
    (entry,) = (e for e in entries(words=[name]) if e.name == name)
    try:
        peak, reserved = measured(entry, functions_of(entry)[provider])
    except (Absent, ImportError) as failure:
        return {"note": note_of(failure)}
    return {"peak_mb": round(peak, 1), "reserved_mb": round(reserved, 1)}


def show(peak: Peak) -> str:
    """One line."""
    figures = (peak.peak_mb, peak.reserved_mb, peak.planned_mb)
    text = " ".join(f"{'' if mb is None else f'{mb:.0f}':>9s}" for mb in figures)
    return f"{peak.entry:92s} {peak.provider:28s} {text} {peak.note}"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which entries, and where to."""
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="only entries with one of these in their name"
    )
    parser.add_argument("--every", action="store_true", help="also entries of ops that hold nothing large")
    add_output(parser)
    add_resume(parser)
    parser.add_argument("--of", nargs=2, metavar=("ENTRY", "PROVIDER"), help=argparse.SUPPRESS)


def plan(found: Iterable[Entry]) -> Iterator[Peak]:
    """What is planned of every implementation, absent ones included."""
    for entry in found:
        for name, function in functions_of(entry).items():
            # A peer's kernels do not run on shapes, and what an op of torch's own allocates inside is not seen.
            mb = planned(entry, function) if provider_of(name) in ("ours", EAGER) else None
            yield Peak(entry.name, name, planned_mb=mb and round(mb, 1))


def run(options: argparse.Namespace) -> int:
    """Measure, print and save; the exit status is 1 if one of ours could not be measured."""
    if options.of:
        print(json.dumps(_of(*options.of)))
        return 0
    check(options.words, (entry.name for entry in chosen((), options.every)), "entry")
    found = list(chosen(options.words, options.every))
    print(f"{'MB beyond the operands':121s} {'peak':>9s} {'reserved':>9s} {'planned':>9s}")
    peaks = list(plan(found))
    if not torch.cuda.is_available():
        print("\n".join(map(show, peaks)))
        return 0
    device = torch.cuda.get_device_name()
    path = file_of(options.output, device, "memory")
    kept = load(path, read_peak)
    done = measured_now(kept) if options.resume else set()
    gone = absent(OF_TORCH)
    wanted = [p for p in peaks if provider_of(p.provider) not in gone and p.key not in done]
    rows: list[Peak] = []
    monitor = Monitor()
    for peak in in_processes(found, peaks, wanted):
        print(show(peak), flush=True)
        rows.append(peak)
        rows.sort(key=wanted_order(wanted))
        keep(path, Run.now(device, None, rows, gone, monitor.hardware()), kept)
    print(f"{len(rows)} rows in {path}")
    return int(any(p.peak_mb is None for p in rows if p.provider == "ours"))


def wanted_order(wanted: Sequence[Peak]) -> Callable[[Peak], int]:
    """The place of a row among those that were asked for."""
    order = {peak.key: i for i, peak in enumerate(wanted)}
    return lambda peak: order[peak.key]


def in_processes(found: Sequence[Entry], peaks: Sequence[Peak], wanted: Sequence[Peak]) -> Iterator[Peak]:
    """What is wanted, as it is measured, as many at a time as have room."""
    operands = {e.name: sum(nbytes(t) for t in e.draw("meta") if t is not None) / 1e6 for e in found}
    most = {e.name: max(p.planned_mb or 0.0 for p in peaks if p.entry == e.name) for e in found}
    room = Room(0.85 * torch.cuda.mem_get_info()[0] / 1e6)
    with concurrent.futures.ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 2) // 2))) as pool:
        # A context takes half a GB; peers that cannot be planned take no more than torch eager does.
        pending = {
            pool.submit(
                in_process, p.entry, p.provider, room, 600 + operands[p.entry] + 1.3 * most[p.entry]
            ): p
            for p in wanted
        }
        for done in concurrent.futures.as_completed(pending):
            yield dataclasses.replace(pending[done], **done.result())


def nbytes(t: torch.Tensor) -> int:
    """Of a tensor that may have no memory."""
    return math.prod(t.shape) * t.element_size()

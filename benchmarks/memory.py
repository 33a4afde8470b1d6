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
import datetime
import gc
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import benchmarks.offline  # whose meter of memory is that of the tests
from benchmarks import gate
from benchmarks.entries import entries
from benchmarks.entry import Entry, Operands
from benchmarks.providers import EAGER, PROVIDERS, Absent, Function, absent, provider_of
from benchmarks.rows import RESULTS, folder_of, source_digest, versions
from benchmarks.run import functions_of

SECONDS = 240.0
"""After which one process is ended."""

assert benchmarks.offline  # imported for its effect on the path


@dataclasses.dataclass(frozen=True)
class Peak:
    """Of one implementation of one op.

    Attributes:
        entry: op and size.
        provider: the implementation.
        peak_mb: allocated at most, beyond the operands.
        reserved_mb: what torch's allocator holds of the driver's at most, likewise.
        planned_mb: the peak on shapes alone; None of what cannot run on them.
        note: why it was not measured.
    """

    entry: str
    provider: str
    peak_mb: float | None = None
    reserved_mb: float | None = None
    planned_mb: float | None = None
    note: str = ""


def step(function: Function, operands: Operands) -> object:
    """Outputs, and gradients where one is wanted, all of them alive at the end."""
    wanted = [t for t in operands if t is not None and t.requires_grad]
    result = function(*operands)
    outputs = gate.outputs_of(result)
    if not (wanted and outputs):
        return result
    return result, torch.autograd.grad(outputs, wanted, [torch.ones_like(o) for o in outputs])


def planned(entry: Entry, function: Function) -> float | None:
    """MB at most on shapes alone."""
    from peak_memory import PeakMemory

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


def chosen(words: Sequence[str]) -> Iterator[Entry]:
    """The entries whose memory matters, or those named."""
    for entry in entries(words=words):
        if words or entry.memory:
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
    except Absent as failure:
        return {"note": f"absent: {failure}"}
    return {"peak_mb": round(peak, 1), "reserved_mb": round(reserved, 1)}


def show(peak: Peak) -> str:
    """One line."""
    figures = (peak.peak_mb, peak.reserved_mb, peak.planned_mb)
    text = " ".join(f"{'' if mb is None else f'{mb:.0f}':>9s}" for mb in figures)
    return f"{peak.entry:92s} {peak.provider:28s} {text} {peak.note}"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which entries, and where to."""
    parser.add_argument("words", nargs="*", metavar="WORD", help="entries whose name contains one of these")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results, with one per device")
    parser.add_argument("--resume", action="store_true", help="leave out what was measured from this source")
    parser.add_argument("--of", nargs=2, metavar=("ENTRY", "PROVIDER"), help=argparse.SUPPRESS)


def plan(words: Sequence[str]) -> dict[tuple[str, str], Peak]:
    """What is planned of every implementation, absent ones included."""
    found = {}
    for entry in chosen(words):
        for name, function in functions_of(entry).items():
            # A peer's kernels do not run on shapes, and what an op of torch's own allocates inside is not seen.
            mb = planned(entry, function) if provider_of(name) in ("ours", EAGER) else None
            found[entry.name, name] = Peak(entry.name, name, planned_mb=mb and round(mb, 1))
    return found


def run(options: argparse.Namespace) -> int:
    """Measure, print and save; the exit status is 1 if one of ours could not be measured."""
    if options.of:
        print(json.dumps(_of(*options.of)))
        return 0
    peaks = plan(options.words)
    print(f"{'MB beyond the operands':121s} {'peak':>9s} {'reserved':>9s} {'planned':>9s}")
    if not torch.cuda.is_available():
        print("\n".join(map(show, peaks.values())))
        return 0
    device = torch.cuda.get_device_name()
    path = options.output / folder_of(device) / "memory.json"
    gone = absent(PROVIDERS)
    head = {
        "device": device,
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "versions": versions(),
        "source": source_digest(),
        "absent": gone,
    }
    kept = json.loads(path.read_text()) if path.exists() else {"rows": []}
    same = all(kept.get(name) == head[name] for name in ("source", "versions"))
    rows = {(r["entry"], r["provider"]): Peak(**r) for r in kept["rows"]}
    wanted = [
        peak
        for key, peak in peaks.items()
        if provider_of(peak.provider) not in gone and not (options.resume and same and key in rows)
    ]
    operands_mb = {
        e.name: sum(math.prod(t.shape) * t.element_size() for t in e.draw("meta") if t is not None) / 1e6
        for e in chosen(options.words)
    }
    most = {e: max(p.planned_mb or 0.0 for p in peaks.values() if p.entry == e) for e in operands_mb}
    room = Room(0.85 * torch.cuda.mem_get_info()[0] / 1e6)
    workers = max(1, min(8, (os.cpu_count() or 2) // 2))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        # A context takes half a GB; peers that cannot be planned take no more than torch eager's does.
        pending = {
            pool.submit(
                in_process, p.entry, p.provider, room, 600 + operands_mb[p.entry] + 1.3 * most[p.entry]
            ): p
            for p in wanted
        }
        for done in concurrent.futures.as_completed(pending):
            peak = dataclasses.replace(pending[done], **done.result())
            rows[peak.entry, peak.provider] = peak
            print(show(peak), flush=True)
            ordered = [rows[key] for key in peaks if key in rows] + [
                row for key, row in rows.items() if key not in peaks
            ]
            _save(path, head, ordered)
    print(f"{len(wanted)} rows in {path}")
    return int(any(rows[p.entry, p.provider].peak_mb is None for p in wanted if p.provider == "ours"))


def _save(path: Path, head: dict[str, Any], rows: Sequence[Peak]) -> None:
    lines = ",\n".join("    " + json.dumps(dataclasses.asdict(row)) for row in rows)
    text = json.dumps(head, indent=2).removesuffix("\n}") + ',\n  "rows": [\n' + lines + "\n  ]\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


HEAD = """MB beyond the operands of one step, outputs and gradients included: allocated by tensors, reserved by torch's
allocator, and planned without a GPU. Each implementation ran in a process of its own.
"""


def page(path: Path) -> str:
    """The report's page."""
    found = json.loads(path.read_text())
    versions_of = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        "# Peak memory",
        "",
        f"Device: {found['device']}; {found['date']}; `{found['command']}`; {versions_of}; source {found['source']}.",
        *HEAD.splitlines(),
        *(f"- Absent: {name}, {reason}." for name, reason in found["absent"].items()),
        "",
        "| op | implementation | peak | reserved | planned | peak over planned | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in (Peak(**r) for r in found["rows"]):
        ratio = f"{row.peak_mb / row.planned_mb:.2f}" if row.peak_mb and row.planned_mb else ""
        cells = ("" if mb is None else f"{mb:.0f}" for mb in (row.peak_mb, row.reserved_mb, row.planned_mb))
        lines.append(f"| {row.entry} | {row.provider} | {' | '.join(cells)} | {ratio} | {row.note} |")
    return "\n".join(lines) + "\n"

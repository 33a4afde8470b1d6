"""`python -m benchmarks run`: every op beside its peers, on the GPU at hand."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch._functorch.config as functorch

from benchmarks import gate
from benchmarks.entries import entries
from benchmarks.entry import Entry, Function, Operands
from benchmarks.rows import RESULTS, Row, Run
from benchmarks.timing import Calls, copy_rate, measure

EAGER = "torch eager"

CACHES = 3
"""Operands of all calls together are at least so many times the size of the L2 cache."""


def passes(entry: Entry, function: Function, sets: list[Operands]) -> dict[str, Calls]:
    """What is timed of one implementation: one call per set of operands."""

    def wanted(operands: Operands) -> list[torch.Tensor]:
        return [t for t in operands if t is not None and t.requires_grad]

    def step(operands: Operands) -> Callable[[], object]:
        def run() -> object:
            outputs = gate.outputs_of(function(*operands))
            return torch.autograd.grad(outputs, wanted(operands), [torch.ones_like(o) for o in outputs])

        return run

    def forward(operands: Operands) -> Callable[[], object]:
        constants = tuple(None if t is None else t.detach() for t in operands)
        return lambda: function(*constants)

    def backward(operands: Operands) -> Callable[[], object]:
        outputs = gate.outputs_of(function(*operands))
        incoming = [torch.randn_like(o) for o in outputs]
        return lambda: torch.autograd.grad(outputs, wanted(operands), incoming, retain_graph=True)

    if entry.step:
        return {"forward and backward": [step(o) for o in sets]}
    found: dict[str, Calls] = {"forward": [forward(o) for o in sets]}
    if any(wanted(o) for o in sets) and gate.outputs_of(function(*sets[0])):
        found["backward"] = [backward(o) for o in sets]
    return found


def peak_mb(call: Callable[[], object]) -> float:
    """Memory beyond what is there, results included."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def operand_sets(entry: Entry) -> list[Operands]:
    """Several draws of the operands, until a call finds nothing of its own in the cache."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    sets = [entry.operands()]
    size = sum(t.nbytes for t in sets[0] if t is not None)
    while len(sets) * size < CACHES * cache and len(sets) < 32:
        sets.append(entry.operands())
    return sets


def measured(entry: Entry, rate: float) -> Iterator[Row]:
    """The rows of one entry."""
    sets = operand_sets(entry)
    least = dict(zip(("forward", "backward", "forward and backward"), entry.bytes(sets[0]), strict=True))
    functions = {"ours": entry.function} | dict(entry.peers)
    if EAGER in functions:
        functions["torch.compile"] = torch.compile(functions[EAGER])
    errors: dict[str, float] = {}
    candidates: dict[str, dict[str, Calls]] = {}
    peaks: dict[tuple[str, str], float] = {}
    floating = (t.dtype for t in sets[0] if t is not None and t.is_floating_point())
    dtype = next(floating, torch.float32)
    for name in sorted(functions, key=EAGER.__ne__):  # whose error the others' is compared with
        try:
            errors[name] = gate.error(entry, functions[name], sets[0])
            if errors[name] > gate.limit(errors.get(EAGER), dtype) and name != EAGER:
                yield Row(
                    entry.name, name, "", error=errors[name], note="not timed: its error is out of line"
                )
                continue
            candidates[name] = passes(entry, functions[name], sets)
            for which, calls in candidates[name].items():
                peaks[name, which] = peak_mb(calls[0])
        except Exception as failure:  # it is a result, and no reason to lose the others
            candidates.pop(name, None)
            yield Row(entry.name, name, "", note=f"failed: {type(failure).__name__}: {str(failure)[:100]}")
    for which in candidates.get("ours", ()):
        turns = {name: found[which] for name, found in candidates.items() if which in found}
        if entry.products is not None:
            constants = tuple(None if t is None else t.detach() for t in sets[0])
            turns["products"] = [entry.products(*constants)]
        times = measure(turns)
        of, ceiling = "copy", least[which] / rate
        if entry.products is not None:
            of, ceiling = "products", times.pop("products")[0].median
        for name, (device, wall) in times.items():
            yield Row(
                entry.name, name, which, device, wall, of, ceiling, errors[name], peaks[name, which]
            )  # fmt: skip


def show(row: Row) -> str:
    """One line."""
    if row.device_us is None or row.wall_us is None:
        error = "" if row.error is None else f" (error {row.error:.1e})"
        return f"{row.entry:56s} {row.provider:26s} {row.note}{error}"
    return (
        f"{row.entry:56s} {row.provider:26s} {row.which:20s} device {row.device_us.median:9.1f} us "
        f"{row.device_share:5.2f}  wall {row.wall_us.median:9.1f} us {row.wall_share:5.2f} of {row.of:8s} "
        f"error {row.error:.1e}  peak {row.peak_mb:6.0f} MB"
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which entries, and where to."""
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="only entries whose name contains one of these"
    )
    parser.add_argument("--output", type=Path, help="where the rows go; by default results/DEVICE/WORDS.json")


def run(options: argparse.Namespace) -> int:
    """Measure, print and save; the exit status is 1 if the copy drifted or one of ours was not timed."""
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks run needs a GPU; `python -m benchmarks offline` does not.")
    torch.manual_seed(0)
    functorch.donated_buffer = False  # torch.compile's graphs are gone through more than once
    before = copy_rate()
    rows: list[Row] = []
    print(f"{torch.cuda.get_device_name()}: copy {before / 1e6:.2f} TB/s", flush=True)
    device = torch.cuda.get_device_name().lower().replace(" ", "-")
    path = options.output or RESULTS / device / f"{'-'.join(options.words) or 'all'}.json"
    after = before

    def save() -> None:
        Run.now((round(before / 1e6, 3), round(after / 1e6, 3)), rows).save(path)

    for entry in entries():
        if options.words and not any(word in entry.name for word in options.words):
            continue
        for row in measured(entry, before):
            print(show(row), flush=True)
            rows.append(row)
        torch.cuda.empty_cache()
        save()  # a lease of a GPU may end in between
    after = copy_rate()
    save()
    print(f"copy again {after / 1e6:.2f} TB/s\n{len(rows)} rows in {path}")
    drifted = abs(after / before - 1) > 0.02
    if drifted:
        print("The copy drifted by more than 2 %: the figures do not compare.")
    missing = [row for row in rows if row.provider == "ours" and row.device_us is None]
    return 1 if drifted or missing else 0

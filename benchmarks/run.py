"""`python -m benchmarks run GROUP ...`: ops beside their peers, on the GPU at hand.

The rows go to results/DEVICE/GROUP.json after every entry, so that a run may be cut short in between; `--resume` goes
on with what `benchmarks.rows.measured_now` leaves out.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
import torch._functorch.config as functorch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gate
from benchmarks.entries import entries
from benchmarks.entry import PASSES, Entry, Operands
from benchmarks.groups import GROUPS
from benchmarks.nvml import Monitor
from benchmarks.options import add_output, add_resume, check
from benchmarks.passes import constants_of, passes, tensors_of
from benchmarks.phases import Phases
from benchmarks.providers import COMPILED, EAGER, OF_TORCH, Function, absent, note_of, provider_of
from benchmarks.rows import Row, Run, conclude, file_of, keep, load, measured_now
from benchmarks.timing import Copy, measure
from benchmarks.turns import Calls, draws, gather


def functions_of(entry: Entry) -> dict[str, Function]:
    """Every implementation by name: ours, the peers', and torch eager compiled."""
    found = {"ours": entry.function} | dict(entry.peers)
    if EAGER in found and entry.compiled:
        found[COMPILED] = torch.compile(found[EAGER], dynamic=False)
    return found


def peak_mb(call: Callable[[], object]) -> float:
    """Memory beyond what is there, results included."""
    torch.cuda.empty_cache()  # or a cached block that is a little larger than what is asked for counts in full
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def repeats(call: Callable[[], object]) -> bool:
    """Whether two calls give the same bits."""
    first, second = (tensors_of(call()) for _ in range(2))
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def flops_of(products: Callable[[], object]) -> int:
    """Floating-point operations of these matrix products."""
    with FlopCounterMode(display=False) as counter:
        products()
    return counter.get_total_flops()


def operand_sets(entry: Entry) -> list[Operands]:
    """Draws of the operands that are together larger than the cache."""

    def size(operands: Operands) -> int:
        found = sum(t.nbytes for t in operands if t is not None)
        # Of a table, only the rows that are looked up come into the cache.
        return found if entry.op is None else min(found, entry.bytes(operands)[0])

    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return draws(lambda _: entry.draw("cuda"), size, cache)


def errors_of(
    entry: Entry, functions: Mapping[str, Function], operands: Operands, phases: Phases
) -> tuple[dict[str, float], list[Row]]:
    """The error of every implementation that may be timed, and a row for each of the others."""
    floating = (t.dtype for t in operands if t is not None and t.is_floating_point())
    dtype = next(floating, torch.float32)
    with phases.of("gate"):
        right = gate.exact(entry, operands)
    errors: dict[str, float] = {}
    rejected: list[Row] = []
    for name in sorted(functions, key=EAGER.__ne__):  # whose error the others' is compared with
        if name == COMPILED and EAGER not in errors:
            rejected.append(Row(entry.name, name, "", note=f"not compared: {EAGER} failed"))
            continue
        try:
            if name == COMPILED:  # beside torch eager on all tokens: for fewer it would be compiled once more
                with phases.of("torch.compile"):
                    whole = (gate.results(functions[n], operands) for n in (COMPILED, EAGER))
                    errors[name] = errors[EAGER] + gate.difference(*whole)
            else:
                with phases.of("gate"):
                    errors[name] = gate.error(entry, functions[name], operands, right)
        except Exception as failure:  # it is a result, and no reason to lose the others
            rejected.append(Row(entry.name, name, "", note=note_of(failure)))
    limits = {
        name: gate.limit(float("inf") if name == EAGER else errors.get(EAGER), dtype) for name in errors
    }
    for name in [name for name in errors if errors[name] > limits[name]]:
        note = "not timed: its error is out of line"
        rejected.append(Row(entry.name, name, "", error=errors.pop(name), note=note))
    return errors, rejected


def measured(
    entry: Entry, copy: Copy, monitor: Monitor, phases: Phases, gone: Iterable[str] = ()
) -> Iterator[Row]:
    """The rows of one entry; providers in `gone` are not there at all."""
    # Code that entries share would soon be compiled for more sizes than torch.compile allows, and then run eagerly.
    torch.compiler.reset()
    # A backward pass that is timed alone goes through its graph more than once, so that torch.compile may not reuse
    # the memory of what it saves. A step is compiled as users have it.
    with contextlib.nullcontext() if entry.step else functorch.patch(donated_buffer=False):
        yield from _measured(entry, copy, monitor, phases, gone)


def _measured(
    entry: Entry, copy: Copy, monitor: Monitor, phases: Phases, gone: Iterable[str]
) -> Iterator[Row]:
    with phases.of("operands"):
        sets = operand_sets(entry)
    least = dict(zip(PASSES, entry.bytes(sets[0]), strict=True))
    functions = {n: f for n, f in functions_of(entry).items() if provider_of(n) not in gone}
    # All are checked before any is timed: some overwrite their operands.
    errors, rejected = errors_of(entry, functions, sets[0], phases)
    yield from rejected
    candidates: dict[str, dict[str, Calls]] = {}
    peaks: dict[tuple[str, str], float] = {}
    same: dict[tuple[str, str], bool] = {}
    for name in (n for n in functions if n in errors):
        try:
            with phases.of("first calls"):
                candidates[name] = passes(entry, functions[name], sets)
                for which, calls in candidates[name].items():
                    calls[0]()  # what is compiled or tuned at first is not what a step takes
                    peaks[name, which] = peak_mb(calls[0])
                    if name == "ours":
                        same[name, which] = repeats(calls[0])
        except Exception as failure:
            candidates.pop(name, None)
            yield Row(entry.name, name, "", note=note_of(failure))
    for which in PASSES:
        turns: dict[str, Calls] = {name: found[which] for name, found in candidates.items() if which in found}
        if not turns:
            continue
        turns["copy"] = [copy]
        flops = None
        if entry.products is not None:
            products = entry.products(*constants_of(sets[0]))
            turns["products"], flops = [products], flops_of(products)
        times = measure(turns, monitor, phases, settled=entry.products is not None)
        of, ceiling = "copy", times.pop("copy").best.times(least[which] / copy.moved)
        if entry.products is not None:
            of, ceiling = "products", times.pop("products").best
        for name, found in times.items():
            yield found.row(
                entry.name,
                name,
                which,
                of,
                ceiling,
                error=errors[name],
                peak_mb=peaks[name, which],
                repeats=same.get((name, which)),
                least_bytes=least[which] or None,
                flops=flops,
            )


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which entries, and where to."""
    parser.formatter_class = argparse.RawTextHelpFormatter
    groups = "\n".join(f"{name}: {text}" for name, text in {**GROUPS, "all": "each of them"}.items())
    parser.add_argument("groups", nargs="+", metavar="GROUP", choices=[*GROUPS, "all"], help=groups)
    parser.add_argument(
        "--word", action="append", default=[], help="only entries whose name contains it; may be given again"
    )
    add_output(parser)
    add_resume(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, print and save; the exit status is 1 if the copy drifted or one of ours was not timed."""
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks run needs a GPU; `python -m benchmarks offline` does not.")
    groups = list(GROUPS) if "all" in options.groups else options.groups
    check(options.word, (entry.name for entry in entries(groups, ())), "entry")
    torch.manual_seed(0)
    device = torch.cuda.get_device_name()
    monitor, copy = Monitor(), Copy()
    print(f"{device}: {monitor.hardware()}", flush=True)
    status = 0
    for group in groups:
        path = file_of(options.output, device, group)
        status |= _group(group, path, options, monitor, copy)
    return status


def _group(group: str, path: Path, options: argparse.Namespace, monitor: Monitor, copy: Copy) -> int:
    kept = load(path)
    done = measured_now(kept) if options.resume else set()
    chosen = [e for e in entries([group], options.word) if e.name not in done]
    if not chosen:
        print(f"{group}: nothing to measure")
        return 0
    gone = absent(OF_TORCH)
    for name, reason in gone.items():
        print(f"{name}: {reason}")
    device = torch.cuda.get_device_name()
    before = copy.rate(monitor)
    print(f"{group}: copy {before / 1e6:.2f} TB/s", flush=True)
    rows: list[Row] = []

    def save(after: float | None = None) -> Run:
        run = Run.now(device, (before, after), rows, gone, monitor.hardware())
        keep(path, run, kept)
        return run

    for entry in chosen:
        # Not after an entry: for some seconds after 50 GB were given back to the driver, though not after 25, a copy is
        # slower by a tenth.
        torch.cuda.empty_cache()
        started, phases = time.monotonic(), Phases()
        gather(entry.name, measured(entry, copy, monitor, phases, gone), rows)
        save()
        print(f"{entry.name}: {time.monotonic() - started:.0f} s: {phases}", flush=True)
    return conclude(save(copy.rate(monitor)), path)

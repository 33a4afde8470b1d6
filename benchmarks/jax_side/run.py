"""`python -m benchmarks jax`: every op of the JAX frontend beside XLA's own formulas, optax and tokamax."""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import os
import time
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp

from benchmarks import checks
from benchmarks.jax_side import gate
from benchmarks.jax_side.entries import FAMILIES, entries
from benchmarks.jax_side.entry import PLAIN, Entry, Operands, Specs, cotangents_for, outputs_of
from benchmarks.jax_side.programs import BACKWARD, BOTH, FORWARD, RESIDUALS, Program, compiled, lowered
from benchmarks.jax_side.timing import COPIED, copy_times, measure
from benchmarks.nvml import Monitor
from benchmarks.options import add_output, add_resume, check
from benchmarks.phases import Phases
from benchmarks.providers import Absent, absent, note_of
from benchmarks.rows import Row, Run, Spread, conclude, file_of, keep, load, measured_now
from benchmarks.turns import Calls, Times, draws, gather

CACHE = 64 << 20
"""At least the L2 cache of the GPUs that are measured; XLA does not tell it."""

GATE = "gate"
PRODUCTS = "products"


@dataclasses.dataclass
class Prepared:
    """An entry whose programs are being compiled.

    Attributes:
        entry: the entry.
        specs: its operands' shapes.
        incoming: its cotangents' shapes.
        programs: by provider and pass.
        failed: what went wrong, by provider.
    """

    entry: Entry
    specs: Specs
    incoming: tuple[Any, ...]
    programs: dict[tuple[str, str], concurrent.futures.Future[Program]]
    failed: dict[str, str]


def prepare(entry: Entry, pool: concurrent.futures.Executor) -> Prepared:
    """Lower every program of an entry, and have it compiled."""
    specs = entry.specs()
    outputs = outputs_of(jax.eval_shape(entry.plain, *specs))
    incoming = jax.eval_shape(lambda: cotangents_for(outputs))
    few = jax.eval_shape(lambda operands: checks.few_rows(entry.op, operands), specs)
    few_incoming = jax.eval_shape(lambda: gate.cotangents(entry, few))
    prepared = Prepared(entry, specs, incoming, {}, {})
    for provider, function in entry.providers().items():
        try:
            checked = dataclasses.replace(entry, step=True)
            found = lowered(entry, function, specs, incoming)
            found[GATE] = lowered(checked, function, few, few_incoming)[BOTH]
        except Absent:  # the run tells of it
            continue
        except Exception as failure:  # it is a result, and no reason to lose the others
            prepared.failed[provider] = note_of(failure)
            continue
        for which, program in found.items():
            tune = which not in (GATE, RESIDUALS)
            prepared.programs[provider, which] = pool.submit(compiled, program, tune)
    return prepared


def operand_sets(entry: Entry) -> list[Operands]:
    """Draws of the operands that are together larger than the cache."""

    def size(operands: Operands) -> int:
        # Of a table, only the rows that are looked up come into the cache.
        return min(sum(a.nbytes for a in operands if a is not None), entry.bytes()[0])

    return draws(entry.operands, size, CACHE)


def errors(prepared: Prepared, operands: Operands) -> dict[str, float]:
    """Of every provider, on a few tokens."""
    entry = prepared.entry
    few = checks.few_rows(entry.op, operands)
    incoming = gate.cotangents(entry, few)
    with jax.enable_x64(True):
        wanted = gate.exact(entry, few, incoming)
    found = {}
    for (provider, which), program in prepared.programs.items():
        if which == GATE:
            try:
                found[provider] = gate.error(program.result().call(few, incoming), wanted)
            except Exception as failure:
                prepared.failed[provider] = note_of(failure)
    return found


def candidates(prepared: Prepared, provider: str, sets: list[Operands]) -> dict[str, Calls]:
    """The calls of each pass of a provider."""

    def program(which: str) -> Any:
        return prepared.programs[provider, which].result().call

    incoming = cotangents_for(prepared.incoming)
    found: dict[str, Calls] = {}
    for which in (FORWARD, BOTH):
        if (provider, which) in prepared.programs:
            call = program(which)
            found[which] = [lambda call=call, o=o: call(o, incoming) for o in sets]  # type: ignore[misc]
    if (provider, BACKWARD) in prepared.programs:
        kept = [jax.tree.leaves(program(RESIDUALS)(o)[1]) for o in sets]
        found[BACKWARD] = [lambda k=k: program(BACKWARD)(k, incoming) for k in kept]  # type: ignore[misc]
    return found


def products_of(entry: Entry, sets: list[Operands]) -> tuple[Calls, int | None]:
    """The call of an entry's matrix products, and its floating-point operations as XLA counts them."""
    assert entry.products is not None
    function, arguments = entry.products(*sets[0])
    lowered = jax.jit(function).lower(*arguments)
    call = lowered.compile()
    counted: Any = lowered.cost_analysis() or {}
    return [lambda: call(*arguments)], int(counted["flops"]) if "flops" in counted else None


def measured(prepared: Prepared, copy: Spread, monitor: Monitor, phases: Phases) -> Iterator[Row]:
    """The rows of one entry; their ceilings are by what the copy takes, or its products."""
    entry = prepared.entry
    with phases.of("operands"):
        sets = operand_sets(entry)
    floating = (s.dtype for s in prepared.specs if s is not None and jnp.issubdtype(s.dtype, jnp.floating))
    dtype = next(floating, jnp.int8)
    with phases.of("gate"):
        found = errors(prepared, sets[0])
    limit = gate.limit(found.get(PLAIN), dtype)
    calls: dict[str, dict[str, Calls]] = {}
    for provider, error in found.items():
        if error > limit:
            yield Row(entry.name, provider, "", error=error, note="not timed: its error is out of line")
            continue
        try:
            calls[provider] = candidates(prepared, provider, sets)
        except Exception as failure:
            prepared.failed[provider] = note_of(failure)
    for provider, said in prepared.failed.items():
        yield Row(entry.name, provider, "", note=said)
        calls.pop(provider, None)
    least = dict(zip((FORWARD, BACKWARD, BOTH), entry.bytes(), strict=True))
    if entry.step:
        least[BOTH] += sum(c.size * c.dtype.itemsize for c in prepared.incoming)
    for which in (FORWARD, BACKWARD, BOTH):
        turns = {provider: passes[which] for provider, passes in calls.items() if which in passes}
        if not turns:
            continue
        flops = None
        if entry.products is not None:
            turns[PRODUCTS], flops = products_of(entry, sets)
        times = measure(turns, monitor, phases, settled=entry.products is not None)
        of, ceiling = "copy", copy.times(least[which] / COPIED)
        if entry.products is not None:
            of, ceiling = "products", times.pop(PRODUCTS).best
        for provider, found_time in times.items():
            program = prepared.programs[provider, which].result()
            yield found_time.row(
                entry.name,
                provider,
                which,
                of,
                ceiling,
                error=found[provider],
                peak_mb=program.peak_mb,
                note=_note(found_time, program),
                least_bytes=least[which] or None,
                flops=flops,
            )


def _note(found: Times, program: Program) -> str:
    note = f"{found.kernels or program.kernels} kernels, {program.temporary_mb:.0f} MB of temporaries"
    return note if found.device else f"{note}; the profiler saw nothing: both times are the wall clock's"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which entries, and where to."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WORD",
        help=f"only entries whose name contains one of these, or families ({', '.join(FAMILIES)})",
    )
    parser.add_argument("--seconds", type=float, help="begin no further entry after so many")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="compile so many programs at once; with more than one, XLA times its own choices on a busy GPU",
    )
    add_output(parser)
    add_resume(parser)


def chosen(words: list[str]) -> list[Entry]:
    """The entries that are asked for, in the order of the words; all without a word."""
    every = list(entries())
    check((word for word in words if word not in FAMILIES), (e.name for _, e in every), "entry")
    found = [e for word in words for family, e in every if word == family or word in e.name]
    return list({e.name: e for e in found or (e for _, e in every)}.values())


def run(options: argparse.Namespace) -> int:
    """Measure, print and save; the exit status is 1 if the copy drifted, one of ours was not timed, or time was up."""
    started = time.monotonic()
    todo = chosen(options.words)
    if jax.default_backend() != "gpu":
        raise SystemExit("benchmarks jax needs a GPU, and jax's plugin for it (pip install '.[jax,cuda]').")
    device = jax.devices()[0].device_kind
    path = file_of(options.output, device, "jax")
    earlier = load(path)
    done = measured_now(earlier) if options.resume else set()
    todo = [entry for entry in todo if entry.name not in done]
    if not todo:
        print("nothing to measure")
        return 0
    monitor = Monitor()
    copy = copy_times(monitor)
    before = COPIED / copy.median
    print(f"{device}: copy {before / 1e6:.2f} TB/s", flush=True)
    rows: list[Row] = []

    def save(after: float | None = None) -> Run:
        run = Run.now(device, (before, after), rows, absent(names), monitor.hardware())
        keep(path, run, earlier)
        return run

    names = {provider for entry in todo for provider in entry.providers()}
    with concurrent.futures.ThreadPoolExecutor(options.threads) as pool:
        while todo:
            if options.seconds and time.monotonic() - started > options.seconds:
                break
            n = max(1, options.threads // 2)
            together, todo = todo[:n], todo[n:]
            # Nothing is measured while something is compiled, for which XLA keeps the GPU busy.
            compiling = Phases()
            with compiling.of("compile"):
                batch = [prepare(entry, pool) for entry in together]
                for prepared in batch:
                    concurrent.futures.wait(prepared.programs.values())
            print(f"{', '.join(entry.name for entry in together)}: seconds: {compiling}", flush=True)
            for prepared in batch:
                phases = Phases()
                gather(prepared.entry.name, measured(prepared, copy, monitor, phases), rows)
                save()  # a run may be cut short in between
                print(f"{prepared.entry.name}: seconds: {phases}", flush=True)
    run = save(COPIED / copy_times(monitor).median)
    for provider, reason in run.absent.items():
        print(f"absent: {provider}: {reason}")
    status = conclude(run, path)
    if todo:
        names_left = ", ".join(entry.name for entry in todo)
        print(f"{len(todo)} entries were not measured, for time; --resume goes on with them: {names_left}")
    return 1 if todo else status

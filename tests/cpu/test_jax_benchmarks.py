"""The benchmarks of the JAX frontend: every implementation that they time computes what the op's reference does."""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
from pathlib import Path

import checkout  # noqa: F401
import jax
import pytest

from benchmarks import nvml, pages, sources, turns
from benchmarks.commands import COMMANDS
from benchmarks.jax_side import gate, run, timing
from benchmarks.jax_side.entries import entries
from benchmarks.jax_side.entry import OURS, PLAIN, Entry, cotangents_for, outputs_of, step_of
from benchmarks.jax_side.run import chosen, prepare
from benchmarks.phases import Phases
from benchmarks.providers import Absent
from benchmarks.rows import Row, Spread, load
from benchmarks.sizes import Sizes
from liger_jax import implementations

COPY = Spread.of([timing.COPIED / 1e6])
"""At 1 TB/s."""

SMALL = Sizes(
    norms=((64, 128),),
    images=((2, 64, 8),),
    groups=4,
    rope=(64, 4, 2, 16),
    table=32,
    mrope=(64, 4, 2, 16),
    sections=(2, 3, 3),
    gate=(64, 96),
    interleaved_gate=(64, 48),
    relu_squared=(64, 96),
    softmax=((64, 96),),
    embedding=((64, 100, 32, False),),
    int2_matmul=((8, 64, 32),),
    losses=((64, 200),),
    linear_losses=((64, 32, 200),),
    policy=(64, 32, 200),
    divergences=((64, 200),),
    linear_divergences=((64, 32, 16, 200),),
)


@pytest.mark.parametrize("entry", [entry for _, entry in entries(SMALL)], ids=lambda entry: entry.name)
def test_every_implementation_is_the_op(entry: Entry) -> None:
    operands = entry.operands()
    incoming = gate.cotangents(entry, operands)
    with jax.enable_x64(True):
        wanted = gate.exact(entry, operands, incoming)
    errors = {}
    for provider, function in entry.providers().items():
        try:
            found = jax.jit(step_of(function, entry.wanted))(operands, incoming)
        except Absent:
            continue
        errors[provider] = gate.error(found, wanted)
    assert {OURS, PLAIN} < set(errors)
    dtype = next(a.dtype for a in operands if a is not None and a.dtype != "int32")
    assert all(error <= gate.limit(errors[PLAIN], dtype) for error in errors.values()), errors


def test_what_is_wrong_is_not_timed() -> None:
    entry = next(entry for _, entry in entries(SMALL) if entry.name.startswith("rms_norm"))
    operands = entry.operands()
    incoming = gate.cotangents(entry, operands)
    with jax.enable_x64(True):
        wanted = gate.exact(entry, operands, incoming)
    step = step_of(lambda *arrays: 1.1 * entry.function(*arrays), entry.wanted)
    error = gate.error(step(operands, incoming), wanted)
    assert error > gate.limit(None, operands[0].dtype)
    assert error > gate.limit(error, operands[0].dtype)  # nor if the plain formula is wrong


def test_the_passes_are_not_made_one() -> None:
    """Both stand in one program, but the cotangents wait for the outputs."""
    entry = next(entry for _, entry in entries(SMALL) if entry.name.startswith("swiglu"))
    operands, outputs = entry.operands(), outputs_of(jax.eval_shape(entry.plain, *entry.specs()))
    incoming = cotangents_for(outputs)
    text = jax.jit(step_of(entry.plain, entry.wanted)).lower(operands, incoming).as_text()
    assert text.count("optimization_barrier") == 1
    forward, backward, both = entry.bytes()
    assert both == forward + backward > 0


def test_entries_cover_every_op_and_have_names_of_their_own() -> None:
    found = [entry for _, entry in entries()]
    assert {entry.op.name for entry in found} == set(implementations.DEFAULTS)
    assert len({entry.name for entry in found}) == len(found)
    assert next(e.name for e in chosen(["swiglu 8192", "norms"])).startswith("swiglu 8192")


def test_the_page_has_the_families_of_the_entries() -> None:
    found: dict[str, set[str]] = {}
    for family, entry in entries():
        found.setdefault(family, set()).add(sources.op(Row(entry.name, OURS, "")))
    assert found == {family: set(ops) for family, ops in pages.FAMILIES.items()}


def test_programs_of_an_entry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = next(entry for _, entry in entries(SMALL) if entry.name.startswith("add_rms_norm"))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        prepared = prepare(entry, pool)
        monitor = nvml.Monitor(library="none")
        monkeypatch.setattr(monitor, "read", lambda: nvml.Reading(1000.0, 500.0, 40.0))
        rows = list(run.measured(prepared, COPY, monitor, Phases()))
    assert not prepared.failed
    assert {(row.provider, row.which) for row in rows} == {
        (provider, which)
        for provider in ("ours", "ours: xla", "XLA")
        for which in ("forward", "backward", "forward and backward")
    }
    by_pass = {row.which: row for row in rows if row.provider == "XLA"}
    # y and the sum; the gradients of x and of the residual are one array, XLA's are two or one
    assert by_pass["forward"].peak_mb >= 2 * 64 * 128 * 2 / 1e6
    assert all("wall clock" in row.note for row in rows)
    assert all(row.ceiling and row.ceiling.median == row.ceiling_us for row in rows)
    # A copy at 1 TB/s: a megabyte in a microsecond.
    assert all(row.ceiling_us == pytest.approx(row.least_bytes / 1e6) for row in rows)
    assert {(row.clock_mhz, row.power_w, row.temperature_c) for row in rows} == {(1000.0, 500.0, 40.0)}


def test_products_are_counted() -> None:
    entry = next(entry for _, entry in entries(SMALL) if entry.name.startswith("linear_cross_entropy"))
    x, kernel = entry.operands(0)[:2]
    calls, flops = run.products_of(entry, [entry.operands(0)])
    assert len(calls) == 1 and flops == 3 * 2 * x.size * kernel.shape[1]
    jax.block_until_ready(calls[0]())


def test_a_run_keeps_its_rows_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a GPU."""
    entry = next(entry for _, entry in entries(SMALL) if entry.name.startswith("rms_norm"))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(run, "copy_times", lambda monitor: COPY)
    monkeypatch.setattr(run, "chosen", lambda words: [entry])
    options = argparse.Namespace(words=[], seconds=None, threads=1, output=tmp_path, resume=True)
    assert run.run(options) == 0
    (path,) = tmp_path.glob("*/jax.json")
    (kept,) = load(path)
    assert {row.provider for row in kept.rows} >= {OURS, PLAIN} and kept.copy_tb_s == (1.0, 1.0)
    assert f"{entry.name}: seconds: operands" in capsys.readouterr().out
    assert run.run(options) == 0  # nothing is left to measure
    assert "nothing to measure" in capsys.readouterr().out and load(path) == (kept,)


def test_a_run_without_time_says_what_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = itertools.islice((entry for _, entry in entries(SMALL)), 2)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(run, "copy_times", lambda monitor: COPY)
    monkeypatch.setattr(run, "chosen", lambda words: [first, second])
    options = argparse.Namespace(words=[], seconds=1e-9, threads=1, output=tmp_path, resume=True)
    assert run.run(options) == 1
    said = capsys.readouterr().out
    assert (
        f"2 entries were not measured, for time; --resume goes on with them: {first.name}, {second.name}"
        in said
    )


def test_parts_of_all_have_every_entry_once() -> None:
    parts = [part[: part.index("--seconds")] for part in COMMANDS["jax"].parts]
    names = sorted(entry.name for part in parts for entry in chosen(list(part)))
    assert names == sorted(entry.name for _, entry in entries())


def test_calls_are_told_apart_by_their_gaps() -> None:
    kernels = [(0.0, 2.0), (2.5, 4.0), (3.0, 6.0), (900.0, 901.0)]
    assert [len(group) for group in timing.groups(kernels, 100.0)] == [3, 1]
    assert turns.busy(kernels) == 2.0 + 3.5 + 1.0


def test_calls_that_are_not_timed_have_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    pause = 2 * timing.APART_US
    monkeypatch.setattr(
        timing, "profiled", lambda calls: [(i * pause, i * pause + i + 1) for i in range(len(calls))]
    )
    order = [("op", False), ("op", True), ("other", False), ("other", True), ("op", False), ("op", True)]
    calls = {"op": [lambda: None], "other": [lambda: None]}
    assert timing._on_device(calls, order) == {"op": ([2.0, 6.0], 1), "other": ([4.0], 1)}


def test_calls_that_cannot_be_told_apart_have_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kernels of a call that are further apart than calls are."""
    pause = 2 * timing.APART_US
    monkeypatch.setattr(
        timing,
        "profiled",
        lambda calls: [(i * pause, i * pause + us) for i, us in enumerate([2.0, 4.0] * len(calls))],
    )
    found = timing._on_device({"op": [lambda: None]}, [("op", True)] * 5)
    assert found == {"op": ([6.0], 2)}

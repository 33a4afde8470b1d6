"""A group of ops that is measured: the gate, what torch.compile may do, and what is kept."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import pytest
import torch
import torch._functorch.config as functorch

from benchmarks import nvml, providers, run, turns
from benchmarks.entries import linear_cross_entropy
from benchmarks.entry import Entry, draw
from benchmarks.passes import constants_of, step
from benchmarks.phases import Phases
from benchmarks.rows import Row, Spread, load
from liger_torch.functional import liger_rms_norm
from liger_triton.rms_norm import RMS_NORM, Options


class FakeCopy:
    moved = 2_000_000

    def rate(self, monitor: object) -> float:
        return 1e6

    def __call__(self) -> None: ...


def fake_measure(
    candidates: Mapping[str, turns.Calls], monitor: object, phases: Phases, settled: bool
) -> dict[str, turns.Times]:
    """Every call runs once, and is said to take longer than the one before."""
    assert settled == ("products" in candidates), "they have another clock behind a copy"
    found = {}
    for i, (name, calls) in enumerate(candidates.items()):
        with phases.of("device"):
            for call in calls:
                call()
        spread = Spread.of([10.0 * (i + 1)])
        found[name] = turns.Times(spread, spread, nvml.Reading(1000.0, 500.0, 40.0))
    return found


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are measured on the CPU, where nothing is timed."""
    monkeypatch.setattr(run, "measure", fake_measure)
    monkeypatch.setattr(run, "peak_mb", lambda call: 1.0)
    monkeypatch.setattr(run, "operand_sets", lambda entry: [entry.draw("cpu"), entry.draw("cpu")])


@pytest.fixture
def on_a_machine(monkeypatch: pytest.MonkeyPatch, untimed: None) -> None:
    """As on a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GPU 80GB")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(run, "Copy", FakeCopy)


def wrong(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, *_: None) -> torch.Tensor:
    return (x @ w.t()).sum() * 1.5


def absent(*_: object) -> object:
    raise providers.Absent("no such function")


def fails(*_: object) -> object:
    raise ValueError("of another mind")


def small(**more: Any) -> Entry:
    found = linear_cross_entropy.entry(96, 32, 80, **more)
    peers = {
        providers.EAGER: found.peers[providers.EAGER],
        "liger-kernel": fails,
        "trl": wrong,
        "torch fused": absent,
    }
    return dataclasses.replace(found, peers=peers, compiled=False)


@pytest.mark.usefixtures("untimed")
def test_every_implementation_has_a_row_or_a_reason() -> None:
    monitor, phases = nvml.Monitor(library="none"), Phases()
    found = {r.provider: r for r in run.measured(small(), FakeCopy(), monitor, phases)}
    assert list(phases.seconds) == ["operands", "gate", "first calls", "device"]
    assert found["liger-kernel"].note == "failed: ValueError: of another mind"
    assert found["torch fused"].note == "absent: no such function"
    assert found["trl"].note == "not timed: its error is out of line" and (found["trl"].error or 0) > 0.1
    for provider in ("ours", providers.EAGER):
        row = found[provider]
        assert row.device_us and row.ceiling_us == 40.0 and row.of == "products"  # the fourth in turn
        assert row.clock_mhz == 1000.0 and row.error is not None and row.error < 0.01
        assert row.ceiling == Spread.of([40.0]) and row.least_bytes
        assert row.flops == 3 * 2 * 96 * 32 * 80
    assert found["ours"].repeats is True and found[providers.EAGER].repeats is None
    gone = {r.provider for r in run.measured(small(), FakeCopy(), monitor, phases, ["trl"])}
    assert "trl" not in gone


@pytest.mark.usefixtures("on_a_machine")
def test_a_run_keeps_its_rows_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [small(), small(frozen=True)]
    monkeypatch.setattr(run, "entries", lambda groups, words: chosen)
    options = argparse.Namespace(groups=["policy"], word=[], output=tmp_path, resume=True)
    path = tmp_path / "nvidia-gpu-80gb" / "policy.json"
    assert run.run(options) == 0
    (kept,) = load(path)
    assert {row.entry for row in kept.rows} == {entry.name for entry in chosen}
    assert kept.device == "NVIDIA GPU 80GB" and kept.copy_tb_s == (1.0, 1.0) and kept.has_versions
    assert "nvml" in kept.hardware and kept.hardware["CPU"]
    assert kept.hardware["cores"] == str(len(os.sched_getaffinity(0)))
    before = path.read_text()
    assert run.run(options) == 0  # nothing is left to measure
    assert path.read_text() == before
    chosen.append(dataclasses.replace(small(forward=True), function=fails))
    assert run.run(options) == 1  # ours fails
    first, second = load(path)
    assert first == kept and {row.entry for row in second.rows} == {chosen[-1].name}
    chosen[-1] = small(forward=True)
    capsys.readouterr()
    assert run.run(options) == 0  # what failed is tried again
    assert f"again: {chosen[-1].name}: failed: ValueError: of another mind" in capsys.readouterr().out
    first, second = load(path)
    assert first == kept and {row.which for row in second.rows if row.provider == "ours"} == {"forward"}


@pytest.mark.usefixtures("on_a_machine")
def test_the_copy_is_measured_before_memory_is_given_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    happened = []

    class Copy(FakeCopy):
        def rate(self, monitor: nvml.Monitor) -> float:
            happened.append("copy")
            return super().rate(monitor)

    monkeypatch.setattr(run, "Copy", Copy)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: happened.append("given back"))
    monkeypatch.setattr(run, "entries", lambda groups, words: [small(), small(frozen=True)])
    monkeypatch.setattr(run, "gather", lambda name, found, rows: happened.append("entry"))
    assert run.run(argparse.Namespace(groups=["policy"], word=[], output=tmp_path, resume=False)) == 0
    assert happened == ["copy", "given back", "entry", "given back", "entry", "copy"]


@pytest.mark.usefixtures("on_a_machine")
def test_what_was_measured_before_a_run_is_cut_short_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def ends(*_: object) -> object:
        raise KeyboardInterrupt

    first, second = small(), small(frozen=True)
    chosen = [first, dataclasses.replace(second, function=ends)]
    monkeypatch.setattr(run, "entries", lambda groups, words: chosen)
    options = argparse.Namespace(groups=["policy"], word=[], output=tmp_path, resume=True)
    with pytest.raises(KeyboardInterrupt):
        run.run(options)
    path = tmp_path / "nvidia-gpu-80gb" / "policy.json"
    (kept,) = load(path)
    assert kept.was_cut_short and {row.entry for row in kept.rows} == {first.name}
    chosen[-1] = second
    assert run.run(options) == 0
    assert [{row.entry for row in each.rows} for each in load(path)] == [{first.name}, {second.name}]


def rms_norm(**more: Any) -> Entry:
    """Measured forward and backward one by one, the plain formula compiled as well."""

    def plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return (wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype) * weight

    return Entry(
        "rms_norm",
        RMS_NORM,
        Options(),
        lambda: (draw(100, 64), draw(64)),
        lambda x, weight: liger_rms_norm(x, weight, 1e-6),
        {providers.EAGER: plain},
        **more,
    )


def measured(entry: Entry) -> dict[tuple[str, str], Row]:
    found = run.measured(entry, FakeCopy(), nvml.Monitor(library="none"), Phases())
    return {(row.provider, row.which): row for row in found}


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("step", [True, False])
def test_a_step_is_compiled_as_users_have_it(monkeypatch: pytest.MonkeyPatch, step: bool) -> None:
    """A backward pass by itself is gone through several times, which donated buffers do not allow."""
    settings = []

    def backend(graph: Any, inputs: Any) -> Any:
        settings.append(functorch.donated_buffer)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    found = measured(rms_norm(step=step))
    assert set(settings) == {step} and functorch.donated_buffer
    passes = {which for provider, which in found if provider == providers.COMPILED}
    assert passes == ({"forward and backward"} if step else {"forward", "backward"})


@pytest.mark.usefixtures("untimed")
def test_what_cannot_be_compared_is_not_timed() -> None:
    entry = dataclasses.replace(rms_norm(), peers={providers.EAGER: fails})
    found = measured(entry)
    assert found[providers.EAGER, ""].note == "failed: ValueError: of another mind"
    assert found[providers.COMPILED, ""].note == "not compared: torch eager failed"
    assert found["ours", "forward"].device_us


def test_operands_are_larger_than_the_cache_together() -> None:
    assert turns.draws(lambda i: i, lambda _: 40, 50) == [0, 1, 2, 3]
    assert turns.draws(lambda i: i, lambda _: 150, 50) == [0]
    assert len(turns.draws(lambda i: i, lambda _: 0, 50)) == turns.MOST_SETS


def test_a_step_has_outputs_and_gradients_of_what_is_wanted() -> None:
    entry = linear_cross_entropy.entry(96, 32, 80, frozen=True)
    operands = entry.draw("cpu")
    loss, gradient = step(entry.function, operands)
    assert loss.shape == () and gradient.shape == (96, 32)
    (loss,) = step(entry.function, constants_of(operands))
    assert not loss.requires_grad

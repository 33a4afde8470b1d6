"""Figures that are held without a GPU: those that need neither a compiler nor the interpreter, and the holding itself."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from pathlib import Path

import checkout  # noqa: F401
import pytest

from benchmarks import offline
from benchmarks.offline import compiled, counted, occupancy, peaks, section, traffic, xla
from benchmarks.options import asked
from liger.device import PRESETS
from liger.launch import Spec
from liger.plan import least_bytes
from liger_triton import rms_norm


@pytest.mark.parametrize("held", [traffic.SECTION, peaks.SECTION], ids=lambda s: s.name)
def test_nothing_grew(held: section.Section) -> None:
    assert held.complaints(held.measure([])) == []


@pytest.mark.parametrize(
    ("held", "field"),
    [
        (traffic.SECTION, "launches"),
        (traffic.SECTION, "forward"),
        (traffic.SECTION, "backward"),
        (peaks.SECTION, "forward"),
        (peaks.SECTION, "step"),
        (counted.SECTION, "counted"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_what_grew_is_named(held: section.Section, field: str) -> None:
    figures = held.held()
    name = next(n for n, line in figures.items() if field in line)
    more = copy.deepcopy(figures)
    more[name][field] += 1  # type: ignore[index]
    (said,) = held.complaints(more)
    assert said.startswith(f"{name}: {field} grew from {figures[name][field]:,} to")
    less = copy.deepcopy(figures)
    less[name][field] -= 1  # type: ignore[index]
    assert held.complaints(less) == []
    del less[name]
    (said,) = held.complaints(less)
    assert said.startswith(f"{name}: gone")
    (said,) = held.complaints(figures | {"another": figures[name]})
    assert said.startswith("another: new")


def test_fewer_warps_and_spills_are_named() -> None:
    then = {"sm_90": [8, 64, 0, 0], "gfx942": [4, 64, 0, 0]}
    assert compiled.complain(then, then) == []
    assert compiled.complain(then | {"sm_90": [8, 62, 8192, 0]}, then) == []
    (said,) = compiled.complain(then | {"sm_90": [8, 65, 0, 0]}, then)
    assert said == (
        "sm_90: 24 warps per multiprocessor instead of 32, by 8 warps of 65 registers and 0 bytes of shared memory "
        "instead of 8 warps of 64 registers and 0 bytes of shared memory"
    )
    (said,) = compiled.complain(then | {"gfx942": [4, 64, 0, 4]}, then)
    assert said == "gfx942: spills 4 bytes"
    assert compiled.complain({"sm_90": then["sm_90"]}, then) == ["gfx942: gone"]


@pytest.mark.parametrize(
    ("target", "launch", "resident"),
    [
        # NVIDIA's occupancy calculator: 65536 registers of 64 warps, 228 KB of which 1 KB goes to each program.
        ("sm_90", (4, 32, 0), 64),
        ("sm_90", (4, 33, 0), 48),  # 40 registers are given
        ("sm_90", (4, 168, 0), 12),
        ("sm_90", (4, 32, 100 << 10), 8),
        ("sm_90", (1, 16, 0), 32),  # no more than 32 programs
        ("sm_80", (8, 255, 80 << 10), 8),
        # AMD: 512 registers and 8 waves of each of four units.
        ("gfx942", (4, 64, 0), 32),
        ("gfx942", (4, 65, 0), 28),
        ("gfx942", (8, 128, 40 << 10), 8),
    ],
)
def test_resident_warps(target: str, launch: tuple[int, int, int], resident: int) -> None:
    assert occupancy.resident_warps(PRESETS[target], *launch) == resident


def test_least_bytes() -> None:
    """Each array once; the gradient of both summands is one array."""
    matrix, vector = Spec((100, 64), "bfloat16"), Spec((64,), "bfloat16")
    operands = (matrix, matrix, vector)
    forward, backward, both = least_bytes(rms_norm.ADD_RMS_NORM, rms_norm.Options(), operands, (True,) * 3)
    assert forward == 4 * matrix.nbytes + vector.nbytes
    # The sum and the weight, two cotangents; one gradient of the summands, one of the weight.
    assert backward == 4 * matrix.nbytes + 2 * vector.nbytes
    assert both == forward + matrix.nbytes + vector.nbytes
    assert least_bytes(rms_norm.ADD_RMS_NORM, rms_norm.Options(), operands, (False, True, False))[1] == (
        4 * matrix.nbytes + vector.nbytes
    )


FINE, GREW, SKIPPED, NAMELESS = section.Outcome


def test_where_ci_runs_nothing_is_skipped() -> None:
    """Held are the figures of the versions that CI installs; with others nothing is compared."""
    pinned = {}
    for name in ("constraints.txt", "requirements-aot.txt"):
        lines = (section.ROOT / name).read_text().splitlines()
        pinned |= dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    assert compiled.SECTION.packages and xla.SECTION.packages
    for held in (compiled.SECTION, xla.SECTION):
        assert held.versions_held() == {package: pinned[package] for package in held.packages}


def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: section.Figures) -> section.Section:
    monkeypatch.setattr(section, "RESULTS", tmp_path)
    monkeypatch.setattr(section, "ROOT", tmp_path)
    return section.Section(
        name="example",
        title="An example",
        measure=lambda words: {n: line for n, line in figures.items() if asked(n, words)},
        complain=section.growth("bytes"),
        show=lambda name, line: f"{name} {line['bytes']}",
        packages=("numpy",),
    )


def test_some_names_are_kept_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: section.Figures = {"b": {"bytes": 2}, "a": {"bytes": 1}}
    held = example(tmp_path, monkeypatch, figures)
    assert section.compare(held, [], write=True) is FINE
    assert [line.split(":")[0].strip() for line in held.path.read_text().splitlines()[3:5]] == ['"a"', '"b"']
    figures |= {"a": {"bytes": 10}, "b": {"bytes": 20}}
    assert section.compare(held, [], write=False) is GREW
    assert section.compare(held, ["a"], write=True) is FINE
    assert held.held() == {"a": {"bytes": 10}, "b": {"bytes": 2}}
    assert section.compare(held, ["a"], write=False) is FINE
    assert section.compare(held, ["b"], write=False) is GREW
    del figures["b"]
    section.compare(held, ["b"], write=True)
    assert held.held() == {"a": {"bytes": 10}}


def test_figures_of_other_versions_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures: section.Figures = {"a": {"bytes": 1}}
    held = example(tmp_path, monkeypatch, figures)
    held.write(figures)
    text = json.loads(held.path.read_text())
    held.path.write_text(json.dumps(text | {"versions": {"numpy": "1.0"}}))
    figures["a"] = {"bytes": 2}
    monkeypatch.setattr(offline, "named", lambda name: held)
    assert offline.run(argparse.Namespace(words=["xla"], write=False)) == offline.SKIPPED
    *_, first, _, last = capsys.readouterr().out.splitlines()
    assert first.startswith("skipped: held for {'numpy': '1.0'}, and this is {'numpy': ")
    assert "`pip install numpy==1.0`" in last and "`python -m benchmarks offline example --write`" in last
    assert last.startswith("1 of 1 sections skipped: xla: held for")
    figures |= {"b": {"bytes": 3}}
    section.compare(held, ["b"], write=True)
    assert held.held() == {"b": {"bytes": 3}}  # what was held of the other version is not mixed in
    cannot = dataclasses.replace(held, missing=lambda: "no compiler")
    assert section.compare(cannot, [], write=True) is SKIPPED
    assert "skipped: no compiler" in capsys.readouterr().out


def test_the_command_fails_if_something_grew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = traffic.SECTION
    figures = {n: dict(line) for n, line in held.held().items() if "softmax-128-bf16" in n}
    monkeypatch.setattr(section, "RESULTS", tmp_path)
    words = argparse.Namespace(words=["traffic", "softmax-128-bf16"], write=False)
    held.write(figures)
    assert offline.run(words) == 0
    for line in figures.values():
        line["forward"] -= 1
    held.write(figures)
    assert offline.run(words) == 1
    assert "softmax-128-bf16: forward grew from" in capsys.readouterr().out

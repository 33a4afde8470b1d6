"""The table of measured geometries: a launch asks it first, and keeps to its rule where it says nothing."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from liger import geometry
from liger.device import A100, H200, MI300X, PRESETS
from liger_triton import norm, norm_geometry, rms_norm
from liger_triton.catalogue.tunables import tunables

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import tune

sys.path.pop()

TABLE = {"rms_norm_backward": {"16-bit": {"4096": {"rows": 4, "programs": 3, "warps": 16, "stages": 2}}}}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A table of sm_90 alone. Launches are cached: those of the table must not outlive it."""
    norm.backward_launch.cache_clear()
    monkeypatch.setattr(geometry, "table", lambda name: TABLE if name == "sm_90" else {})
    yield
    norm.backward_launch.cache_clear()


def launched(n_cols: int, dtype: str = "bfloat16", device=H200, n_rows: int = 10_000):
    want, options = norm.Gradients(True, True, False), rms_norm.Options()
    return norm.backward_launch(
        n_rows, n_cols, dtype, dtype, dtype, n_cols, n_cols, None, want, options, device
    )


@pytest.mark.usefixtures("given")
def test_an_entry_is_used_by_the_launch() -> None:
    launch = launched(4096)
    constants = dict(launch.constants)
    assert (constants["ROWS"], constants["STAGES"], launch.num_warps) == (4, 2, 16)
    assert launch.grid == (3 * H200.multiprocessors,)
    assert launched(4096, n_rows=9).grid == (3,)


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize(
    ("n_cols", "dtype", "device"),
    [
        (2048, "bfloat16", H200),
        (2560, "bfloat16", H200),
        (4096, "float32", H200),
        (4096, "bfloat16", A100),
        (4096, "bfloat16", MI300X),
    ],
)
def test_without_an_entry_the_rule_holds(n_cols, dtype, device) -> None:
    itemsize = 2 if dtype == "bfloat16" else 4
    rule = norm_geometry.backward_rule(n_cols, itemsize, False, device)
    launch = launched(n_cols, dtype, device)
    constants = dict(launch.constants)
    assert (constants["ROWS"], constants["STAGES"], launch.num_warps) == (rule.rows, rule.stages, rule.warps)
    assert launch.grid == (rule.programs * device.multiprocessors,)


@pytest.mark.parametrize(("shared_bytes", "stages"), [(H200.shared_bytes, 4), (101_376, 3)])
def test_a_fourth_stage_only_where_its_buffers_fit(shared_bytes: int, stages: int) -> None:
    """Three buffers of 5120 columns, of x and of two cotangents, take 147 KB, and an L40S has 99."""
    device = dataclasses.replace(H200, shared_bytes=shared_bytes)
    assert dict(launched(5120, device=device).constants)["STAGES"] == stages


def test_an_architecture_without_a_file_has_an_empty_table() -> None:
    assert geometry.table("sm_1") == {}
    assert geometry.architecture(H200) == "sm_90"
    assert geometry.architecture(MI300X) == "gfx942"


@pytest.mark.parametrize("path", sorted(geometry.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_what_is_shipped(path: Path) -> None:
    """Every entry is one that a launch asks for, has its fields, and is written as the command writes it."""
    shipped = json.loads(path.read_text())
    assert tune.text(shipped) == path.read_text()
    asked = {(t.name, f"{8 * t.itemsize}-bit", str(t.size)): t for t in tunables(PRESETS[path.stem])}
    for name, widths in shipped.items():
        for width, sizes in widths.items():
            for size, entry in sizes.items():
                tunable = asked[name, width, size]
                assert tunable.chosen(PRESETS[path.stem])._asdict() == entry
                assert entry != tunable.rule._asdict()


def test_the_command_adds_and_removes_entries() -> None:
    by_title = {t.title: t for t in tunables(H200)}
    small, large = (by_title[f"rms_norm_backward 16-bit {size}"] for size in (512, 4096))
    added = tune.updated(TABLE, small, norm_geometry.Geometry(8, 4, 8, 2))
    assert list(added["rms_norm_backward"]["16-bit"]) == ["512", "4096"]
    assert added["rms_norm_backward"]["16-bit"]["512"] == {"rows": 8, "programs": 4, "warps": 8, "stages": 2}
    assert json.loads(tune.text(added)) == added
    assert tune.updated(added, small, None) == TABLE
    assert tune.updated(TABLE, large, None) == {}
    assert "512" not in TABLE["rms_norm_backward"]["16-bit"]


def test_rules_are_among_the_candidates() -> None:
    for device in PRESETS.values():
        for tunable in tunables(device):
            assert tunable.rule in tunable.candidates
            assert len(set(tunable.candidates)) == len(tunable.candidates) > 1


def test_other_results_do_not_agree() -> None:
    expected = [torch.randn(50, 7, generator=torch.Generator().manual_seed(0)), torch.ones(7)]
    assert tune.agree([t * (1 + 2**-24) for t in expected], expected)
    for i in range(2):
        found = [t.clone() for t in expected]
        found[i][0] += 0.01
        assert not tune.agree(found, expected)
    found[0][0] = float("nan")
    assert not tune.agree(found, expected)

"""What is kept of a measurement: rows, their statistics, and which of them are to be measured again."""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import pytest

from benchmarks import memory_page, merge, verdicts
from benchmarks.models.case import Case, Result
from benchmarks.rows import Row, Run, Spread, keep, load, measured_now, rows_of, save


def rows() -> tuple[Row, ...]:
    fast, slow = Spread.of([1.0, 2.0, 3.0]), Spread.of([4.0])
    return (
        Row("op 1x2", "ours", "forward", slow, slow, "copy", 1.0, 1e-3, 5.0),
        Row("op 1x2", "peer", "forward", fast, slow, "copy", 1.0, 1e-3, 5.0),
        Row("op 1x2", "other-peer", "", error=0.5, note="not timed: its error is out of line"),
    )


def run_of(found: tuple[Row, ...], **more: Any) -> Run:
    return Run("GPU", "2026-01-01", "python -m benchmarks run", {"torch": "2"}, (3.0, 3.1), found, **more)


def test_rows_are_kept_as_they_are(tmp_path: Path) -> None:
    first, *others = rows()
    whole = dataclasses.replace(first, least_bytes=7, ceiling=Spread(1.0, 0.9, 1.1, 30))
    kept = run_of((whole, *others), absent={"quack": "not installed"}, hardware={"driver": "1"}, source="abc")
    save(tmp_path / "gpu" / "norms.json", [kept])
    assert load(tmp_path / "gpu" / "norms.json") == (kept,)
    # Older rows stay as they were.
    assert (tmp_path / "gpu" / "norms.json").read_text().count("least_bytes") == 1
    assert load(tmp_path / "none.json") == ()
    assert kept.rows[0].device_share == 0.25
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert (Spread.of([3.0, 1.0, 2.0]).range, Spread.of([2.0]).range) == ("1.0 to 3.0", "a mean")
    assert Spread(2.0, 1.0, 3.0, 9).times(2.0) == Spread(4.0, 2.0, 6.0, 9)


def test_the_error_of_a_median() -> None:
    assert Spread(2.0, 1.9, 2.1, 30).error == pytest.approx(0.02719, rel=1e-3)
    assert Spread.of([2.0]).error == float("inf")  # a mean alone
    # Medians of 30 normal samples differ by what it says.
    draw = random.Random(0)
    found = [Spread.of([draw.gauss(10.0, 1.0) for _ in range(30)]) for _ in range(400)]
    said = statistics.mean(spread.error for spread in found)
    assert statistics.stdev(spread.median for spread in found) == pytest.approx(said, rel=0.1)


def test_medians_are_told_apart_by_two_standard_errors() -> None:
    mine = Spread(2.0, 1.9, 2.1, 30)  # of the difference of two such .0385
    assert not verdicts.apart(mine, Spread(2.075, 1.975, 2.175, 30))
    assert verdicts.apart(mine, Spread(2.079, 1.979, 2.179, 30))
    assert not verdicts.apart(mine, Spread.of([3.0]))
    of_products = dataclasses.replace(rows()[0], of="products")
    assert of_products.device_share is not None and of_products.wall_share is None


def test_an_entry_measured_anew_replaces_its_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "norms.json"
    other = dataclasses.replace(rows()[0], entry="op 3x4")
    save(path, [run_of((*rows(), other))])
    again = dataclasses.replace(rows()[0], peak_mb=6.0)
    keep(path, dataclasses.replace(run_of((again,)), date="2026-01-02"), load(path))
    assert [r.date for r in load(path)] == ["2026-01-01", "2026-01-02"]
    assert rows_of(load(path)) == [other, again]


def test_a_peer_that_was_not_there_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "norms.json"
    first, second = (dataclasses.replace(rows()[0], peak_mb=mb) for mb in (5.0, 6.0))
    lost = [dataclasses.replace(first, provider=name) for name in ("quack", "quack: in place")]
    peer = dataclasses.replace(first, provider="liger-kernel")
    old = dataclasses.replace(run_of((first, *lost, peer)), copy_tb_s=(4.0, 3.0))
    save(path, [old])
    new = Run.now("GPU", (4e6, 4e6), (second,), {"quack": "no module"}, {})
    for _ in range(2):  # the second time it changes nothing
        keep(path, new, load(path))
        assert rows_of(load(path)) == [*lost, second]
    assert measured_now(load(path)) == {second.key}, "the old run's drift is not the new one's"
    told = dataclasses.replace(second, provider="quack", device_us=None, note="absent: no module")
    keep(path, dataclasses.replace(new, rows=(second, told)), load(path))
    assert rows_of(load(path)) == [lost[1], second, told]
    keep(path, dataclasses.replace(new, absent={}), load(path))
    assert rows_of(load(path)) == [second]


def test_rows_of_several_folders_are_merged(tmp_path: Path) -> None:
    other = dataclasses.replace(rows()[0], entry="op 3x4")
    peaks = memory_page.Peak("op", "ours", 1.0), memory_page.Peak("op", "trl", 2.0)
    models = [Result(Case("llama-3.2-1b", arm), note="out of memory") for arm in ("ours", "eager")]
    for i in (0, 1):
        folder = tmp_path / str(i) / "gpu"
        save(folder / "norms.json", [run_of((rows()[0],)), run_of((other,))][: i + 1])
        save(folder / "memory.json", [Run("GPU", "", "", {}, None, (peaks[i],))])
        save(folder / "models.json", [Run("GPU", "", "", {}, None, (models[i],))])
    target = tmp_path / "results"
    options = argparse.Namespace(folders=[tmp_path / "0", tmp_path / "1"], output=target)
    for _ in range(2):  # the second time it changes nothing
        assert merge.run(options) == 0
        assert rows_of(load(target / "gpu" / "norms.json")) == [rows()[0], other]
        assert rows_of(load(target / "gpu" / "memory.json", memory_page.read_peak)) == list(peaks)
        assert rows_of(load(target / "gpu" / "models.json", Result.from_json)) == models
    with pytest.raises(SystemExit, match="No results in"):
        merge.run(argparse.Namespace(folders=[tmp_path / "none"], output=target))


def test_what_failed_was_not_measured() -> None:
    def current(*found: Any) -> Run:
        return Run.now("GPU", None, found, {}, {})

    ours, peer = rows()[:2]
    broke_off = dataclasses.replace(ours, which="backward", note="failed: no memory")
    other = dataclasses.replace(peer, entry="op 3x4", note="failed: it cannot")
    assert measured_now([current(ours, broke_off, other)]) == {"op 3x4"}  # what a peer cannot do stands
    wrong = dataclasses.replace(broke_off, note="not timed: its error is out of line")
    assert measured_now([current(ours, wrong)]) == set()
    assert measured_now([current(dataclasses.replace(wrong, provider="trl"))]) == {"op 1x2"}
    drifted = dataclasses.replace(current(other), copy_tb_s=(4.0, 3.9))
    assert measured_now([current(ours), drifted]) == {"op 1x2"}
    cut_short = dataclasses.replace(current(other), copy_tb_s=(4.0, None))
    assert measured_now([cut_short]) == {"op 3x4"}  # or it would begin anew each time
    done, failed = (
        memory_page.Peak("op", "ours", 1.0),
        memory_page.Peak("op", "trl", note="failed: more than 240 s"),
    )
    assert measured_now([current(done, failed)]) == {("op", "ours")}
    case = Case("llama-3.2-1b", "ours")
    longer = dataclasses.replace(case, tokens=16_384)
    found = [Result(case, note="failed: ValueError"), Result(longer, note="out of memory")]
    assert measured_now([current(*found)]) == {longer.key}


def test_what_has_changed_since_was_not_measured() -> None:
    ours, peer = (dataclasses.replace(row, entry="rms_norm 1x2") for row in rows()[:2])
    other = dataclasses.replace(ours, entry="rope 1x2")
    now = Run.now("GPU", None, [ours, peer, other], {}, {})
    assert measured_now([now]) == {"rms_norm 1x2", "rope 1x2"}
    for sources in ({"rope": now.sources["rope"]}, now.sources | {"rms_norm": "older"}):
        assert measured_now([dataclasses.replace(now, sources=sources)]) == {"rope 1x2"}
    alone = dataclasses.replace(now, rows=(peer,), sources={})
    assert measured_now([alone]) == {"rms_norm 1x2"}  # a peer's row does not depend on this package


def test_what_other_packages_measured_is_not_of_today() -> None:
    now = Run.now("GPU", None, rows()[:1], {}, {})
    assert measured_now([dataclasses.replace(now, versions=now.versions | {"gone": "1"})]) == {"op 1x2"}
    assert measured_now([dataclasses.replace(now, versions=now.versions | {"python": "2.7"})]) == set()
    absent = {name: version for name, version in now.versions.items() if name != "python"}
    assert measured_now([dataclasses.replace(now, versions=absent)]) == set()

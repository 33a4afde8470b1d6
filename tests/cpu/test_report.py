"""What the report makes of rows, and that what is committed is what it makes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import pytest
from without import run_without

from benchmarks import aims, figures, first_page, host_page, memory_page, pages, plots, providers, slower
from benchmarks.aims import AHEAD, HOST, HOST_AHEAD, LEAN, LEVEL, PLANNED, SHARE, WITHIN, Aim
from benchmarks.marked import marks
from benchmarks.placed import DRIFTED, LEGENDS, OLDER, UNTOLD, Placed, placed
from benchmarks.report import Options, render
from benchmarks.rows import BACKWARD, BOTH, FORWARD, Row, Run, Spread, load, rows_of, save
from benchmarks.verdicts import NEARLY, Measured
from liger.device import PRESETS

ROOT = Path(__file__).parents[2]


def rows() -> tuple[Row, ...]:
    fast, slow = Spread.of([1.0, 2.0, 3.0]), Spread.of([4.0])
    return (
        Row("op 1x2", "ours", "forward", slow, slow, "copy", 1.0, 1e-3, 5.0),
        Row("op 1x2", "trl", "forward", fast, slow, "copy", 1.0, 1e-3, 5.0),
        Row("op 1x2", "liger-kernel", "", error=0.5, note="not timed: its error is out of line"),
    )


def run_of(found: tuple[Any, ...], **more: Any) -> Run:
    """With the digests of today, and a copy that did not drift, unless something else is said."""
    now = Run.now("GPU", (3e6, 3.01e6), found, {}, {})
    values = {"date": "2026-01-01", "versions": {"torch": "2"}, "hardware": {}} | more
    return Run(**{**{name: getattr(now, name) for name in now.__dataclass_fields__}, **values})


def plain(text: str) -> str:
    """Without anchors and links, whose text stays."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", re.sub(r'<a id="[^"]*"></a>', "", text))


def test_pages(tmp_path: Path) -> None:
    save(tmp_path / "results" / "gpu" / "norms.json", [run_of(rows(), absent={"quack": "not installed"})])
    readme = tmp_path / "README.md"
    readme.write_text("before\n{}\nold\n{}\nafter\n".format(*marks("figures")))
    (tmp_path / "docs" / "gpu").mkdir(parents=True)
    for gone in ("gates.md", "gates.svg", "gates.png"):
        (tmp_path / "docs" / "gpu" / gone).write_text("of rows that are gone")
    render(Options(tmp_path / "results", tmp_path / "docs", readme))
    assert sorted(p.name for p in (tmp_path / "docs" / "gpu").iterdir()) == [
        "norms.md",
        "norms.png",
        "norms.svg",
    ]
    page = (tmp_path / "docs" / "gpu" / "norms.md").read_text()
    assert "| op 1x2 | forward | 4.0 | trl | 2.0 |" in plain(page)  # lost
    assert f"[2.0](#{rows()[1].anchor})" in page and f'<a id="{rows()[1].anchor}"></a>' in page
    assert "its error is out of line" in page
    assert "absent: quack (not installed)" in page
    assert "[results/gpu/norms.json](../../../benchmarks/results/gpu/norms.json)" in page
    assert (tmp_path / "docs" / "gpu" / "norms.png").stat().st_size > 1000
    assert "<svg" in (tmp_path / "docs" / "gpu" / "norms.svg").read_text()
    index = (tmp_path / "docs" / "README.md").read_text()
    assert "(gpu/norms.md)" in index and "Absent: quack (not installed)." in index
    assert "faster on the device: 1 of 1" in index
    assert f"[2.0](gpu/norms.md#{rows()[1].anchor})" in index
    assert readme.read_text().startswith("before\n") and "old" not in readme.read_text()
    assert not any(legend in page + index for legend in LEGENDS.values())


def test_rows_of_an_older_source_and_of_a_copy_that_drifted_are_marked(tmp_path: Path) -> None:
    name = "rms_norm 8192x4096"
    found = [
        Row(name, p, FORWARD, Spread.of([2.0, 2.0]), Spread.of([2.0]), "copy", 1.8) for p in figures.PEERS
    ]
    readme, docs = tmp_path / "README.md", tmp_path / "docs"
    for more, mark in (
        ({}, ""),
        ({"sources": {"rms_norm": "abc"}}, OLDER),
        ({"sources": {}}, UNTOLD),
        ({"copy_tb_s": (4.0, 3.9)}, DRIFTED),
        ({"copy_tb_s": (4.0, None)}, DRIFTED),
    ):
        save(tmp_path / "results" / "gpu" / "norms.json", [run_of(tuple(found), **more)])
        readme.write_text("{}\n{}\n".format(*marks("figures")))
        render(Options(tmp_path / "results", docs, readme, plots=False))
        page = (docs / "gpu" / "norms.md").read_text()
        assert f"| ours | forward | 2.0{mark} (2.0 to 2.0) |" in page
        assert f"| 93% of copy | 90.0%{mark} | missed |" in plain(page)
        assert f"| 93% of copy | 90.0%{mark} | missed |" in plain((docs / "README.md").read_text())
        others = mark if mark == DRIFTED else ""  # which code of ours does not make older
        assert f"| 0.90{mark} | 0.90{others} |" in plain(readme.read_text())
        for text in (page, (docs / "README.md").read_text(), readme.read_text()):
            assert [found for found in LEGENDS if LEGENDS[found] in text] == list(mark)


def test_the_readme_names_the_quickest_of_the_peers_without_a_column(tmp_path: Path) -> None:
    name = "rms_norm 8192x4096"
    times = {"ours": 2.0, "torch.compile: of another": 0.5, "quack": 3.0, "trl": 2.5, "torch fused": 4.0}
    save(tmp_path / "gpu" / "norms.json", [run_of(tuple(timed(name, FORWARD, times)))])
    (line,) = [plain(line) for line in figures.lines(tmp_path) if line.startswith(f"| {name}")]
    assert line == f"| {name}, forward | copy | 0.90 |  |  |  | trl 0.72 |"


def test_the_readme_has_no_rows_of_an_earlier_harness(tmp_path: Path) -> None:
    name = "rms_norm 8192x4096"
    (mine,), (theirs,) = (timed(name, FORWARD, {p: 2.0}) for p in ("ours", "liger-kernel"))
    for device, dates in (("a", ("2026-01-03", "2026-01-05")), ("b", ("2026-01-09", "2026-01-01"))):
        runs = [run_of((mine,), device=device, date=date) for date in dates]
        save(tmp_path / device / "norms.json", [*runs, run_of((theirs,), date="2026-01-08", source="")])
    save(tmp_path / "c" / "norms.json", [run_of((mine,), source="")])
    assert figures.devices(tmp_path) == ["b", "a"]  # the one that was measured last
    lines = [plain(line) for line in figures.lines(tmp_path) if line.startswith("| rms_norm")]
    assert lines == 2 * [f"| {name}, forward | copy | 0.90 |  |  |  |  |"]


def test_the_device_that_was_measured_last_comes_first_and_an_earlier_harness_is_told(tmp_path: Path) -> None:
    old = run_of(rows(), device="Old GPU", source="", date="2026-01-01")
    new = run_of(rows(), device="New GPU", date="2026-01-02")
    for run in (old, new):
        save(tmp_path / "results" / run.device[:3].lower().replace("old", "a") / "norms.json", [run])
    render(Options(tmp_path / "results", tmp_path / "docs", tmp_path / "none", plots=False))
    index = (tmp_path / "docs" / "README.md").read_text()
    headings = re.findall(r"^## (.*GPU.*)$", index, re.MULTILINE)
    assert headings[:2] == ["New GPU", "Old GPU (an earlier harness)"]
    of_new, of_old = index.split("## Old GPU")
    assert "<summary>Not measured" in of_new
    # An earlier harness knew nothing of most aims.
    assert (
        "### Aims that it measured: 0\n\n0 met, 0 missed." in of_old and "not measured" not in of_old.lower()
    )


def test_who_has_rows_is_not_absent() -> None:
    first = run_of(rows(), absent={"quack": "not installed"})
    second = run_of((), absent={"quack": "not installed", "trl": "does not import"})
    runs = [first, second]
    assert first_page.absent_of(runs, placed(runs, "")) == {"quack": "not installed"}


def test_why_one_is_absent_is_said_as_by_the_newest_run() -> None:
    runs = [
        run_of((), absent={"quack": why}, date=date) for why, date in (("new", "2026-02"), ("old", "2026-01"))
    ]
    assert first_page.absent_of(runs, []) == {"quack": "new"}


def test_the_first_page_tells_where_others_are_ahead_in_host_cost_and_memory(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "gpu"
    times = {"ours": 30.0, host_page.EMPTY: 10.0, providers.LIGER: 50.0, providers.FUSED: 12.0}
    host_rows = [
        Row(op, provider, "forward", wall_us=Spread.of([us if op == "rope" else us / 2]))
        for op in ("rope", "swiglu")
        for provider, us in times.items()
    ]
    save(folder / "host.json", [run_of(tuple(host_rows))])
    peaks = [
        memory_page.Peak("op", p, mb)
        for p, mb in (("ours", 12.0), ("trl", 9.0), ("quack", 11.9), ("ours: lean", 1.0))
    ]
    save(folder / "memory.json", [run_of(tuple(peaks), copy_tb_s=None)])
    render(Options(tmp_path / "results", tmp_path / "docs", tmp_path / "none"))
    index = plain((tmp_path / "docs" / "README.md").read_text())
    assert "| rope | forward | 12 us on the host beyond an empty function | 20.0 us | missed |" in index
    assert (
        "| rope | forward | 3 times less on the host than liger-kernel | 2.0 times less | missed |" in index
    )
    assert (
        "| swiglu | forward | 12 us on the host beyond an empty function | "
        not in index.split("<details>")[0]
    )
    assert "| rope | forward | 20.0 | torch fused | 2.0 |" in index
    page = plain((tmp_path / "docs" / "gpu" / "host.md").read_text())
    assert "| rope | forward | 10.0 | 30.0 (30.0 to 30.0) | 20.0 | 12 | 40.0 | 2.0 | 2.0 |" in page
    assert "missed: 12 us, 3 times |" in page and "| 1.0 | missed: 3 times |" in page
    lean = "takes less memory, by 1% or more\n\n| op | ours | peer | its peak, MB |\n|---|---|---|---|\n| op | 12 | trl | 9 |\n"
    assert lean in index
    assert plain((tmp_path / "docs" / "gpu" / "memory.md").read_text()).endswith(lean)


def test_the_page_of_memory(tmp_path: Path) -> None:
    found = [
        memory_page.Peak("op", "ours", 12.0, 14.0, 10.0),
        memory_page.Peak("op", "trl", note="failed: no"),
    ]
    path = tmp_path / "gpu" / "memory.json"
    save(path, [run_of(tuple(found), copy_tb_s=None, absent={"quack": "no"})])
    assert rows_of(load(path, memory_page.read_peak)) == found
    page = memory_page.page(path)
    assert "| op | ours | 12 | 14 | 10 | 1.20 |" in plain(page) and f'<a id="{found[0].anchor}"></a>' in page
    assert "failed: no" in page and "absent: quack (no)" in page


def test_the_readme_tells_what_was_lost_by_more_than_two_standard_errors(tmp_path: Path) -> None:
    ours, near, far = Spread(4.0, 3.9, 4.1, 9), Spread(3.9, 3.8, 4.05, 9), Spread(2.0, 1.9, 2.1, 9)
    found = [
        *timed("rms_norm 1x2", FORWARD, {"ours": ours, "trl": near, "quack": far}),
        *timed("rms_norm 3x4", FORWARD, {"ours": ours, "trl": near, "quack": Spread(1.0, 0.9, 1.1, 9)}),
    ]
    save(tmp_path / "gpu" / "norms.json", [run_of(tuple(found))])
    (line,) = [plain(line) for line in slower.lines(tmp_path) if "rms_norm" in line]
    assert line == "| rms_norm | quack | 2 of 2 | 0.25 (3x4, forward) | 4.0 | 1.0 |"


def test_a_peer_of_another_run_is_told_so(tmp_path: Path) -> None:
    """It was not there when the op was measured anew, and kept its row."""
    ours, peer = Spread(4.0, 3.9, 4.1, 9), Spread(2.0, 1.9, 2.1, 9)
    mine, other = timed("rms_norm 1x2", FORWARD, {"ours": ours, "quack": peer})
    path = tmp_path / "gpu" / "norms.json"
    save(path, [run_of((other,)), run_of((mine,), absent={"quack": "not installed"})])
    (line,) = [plain(line) for line in slower.lines(tmp_path) if "rms_norm" in line]
    assert line == "| rms_norm | quack | 1 of 1 | 0.50 (1x2, forward) | 4.0 | 2.0 of another run |"
    (line,) = pages.lost(placed(load(path), ""))
    assert plain(line) == "| rms_norm 1x2 | forward | 4.0 | quack | 2.0 | of another run |"
    for kind in (AHEAD, LEVEL):
        wanted = [Aim("rms_norm 1x2", FORWARD, kind, 1.0, peer="quack")]
        (found,) = Measured(placed(load(path), ""), [], wanted).verdicts()
        assert plain(found.reached).endswith("us, of another run)")


# ------------------------------------------------------------------------------------------------- aims


def judged(
    rows: list[Row], wanted: list[Aim], peaks: Mapping[tuple[str, str], float] | None = None
) -> dict[str, tuple[str, str]]:
    """What is said of each aim: what was reached, and the verdict."""
    steps = [memory_page.Peak(*key, mb) for key, mb in (peaks or {}).items()]

    def of(found: list[Any]) -> list[Placed]:
        return placed([run_of(tuple(found))], "page.md")

    found = Measured(of(rows), of(steps), wanted).verdicts()
    return {v.aim.text: (plain(v.reached), v.verdict) for v in found}


def timed(entry: str, which: str, times: Mapping[str, float | Spread], **more: Any) -> list[Row]:
    spreads = {p: us if isinstance(us, Spread) else Spread.of([us, us]) for p, us in times.items()}
    return [Row(entry, provider, which, us, us, "copy", 1.8, **more) for provider, us in spreads.items()]


def test_aims_are_compared_with_what_was_reached() -> None:
    found = timed(
        "op", BACKWARD, {"ours": 2.0, "liger-kernel": 3.0, "torch.compile": Spread(1.9, 1.8, 2.1, 9)}
    )
    wanted = [
        Aim("op", BACKWARD, SHARE, 0.85, of="copy"),
        Aim("op", BACKWARD, AHEAD, 2.0, "liger-kernel"),
        Aim("op", BACKWARD, LEVEL, 1.03, "torch.compile"),
        Aim("op", BACKWARD, AHEAD, 3.0, "quack"),
        Aim("op", FORWARD, SHARE, 0.9, of="copy"),
    ]
    assert judged(found, wanted) == {
        "85% of copy": ("90.0%", "met"),
        "2 times as fast as liger-kernel": (
            "1.50 (2.0, 2.0 to 2.0 us, its 3.0, 3.0 to 3.0 us)",
            "missed, beyond the ceiling (1.67 at best)",
        ),
        "no slower than torch.compile by over 3%": (
            "1.053 of torch.compile (2.0, 2.0 to 2.0 us, its 1.9, 1.8 to 2.1 us)",
            "missed, within two standard errors",
        ),
        "3 times as fast as quack": ("", "not measured"),
        "90% of copy": ("", "not measured"),
    }


def test_an_aim_that_the_ceiling_itself_does_not_reach_is_beyond_it() -> None:
    found = timed(
        "op", BACKWARD, {"ours": 2.0, "liger-kernel": 3.0, "torch.compile": 1.7}
    )  # the ceiling is 1.8
    wanted = [
        Aim("op", BACKWARD, AHEAD, 2.0, "liger-kernel"),
        Aim("op", BACKWARD, AHEAD, 1.6, "liger-kernel"),
        Aim("op", BACKWARD, LEVEL, 1.03, "torch.compile"),
        Aim("op", BACKWARD, LEVEL, 1.0, "liger-kernel"),
        Aim("op", BACKWARD, SHARE, 0.95, of="copy"),
    ]
    assert [said for _, said in judged(found, wanted).values()] == [
        "missed, beyond the ceiling (1.67 at best)",
        "missed",
        "missed",  # the peer has passed the ceiling
        "met",
        "missed",
    ]
    nearly = [dataclasses.replace(row, ceiling_us=1.502) for row in found]
    assert judged(nearly, wanted[:1])[wanted[0].text][1] == "missed, beyond the ceiling (1.997 at best)"
    for ceiling in (2.1, None):  # passed, or not known
        unknown = [dataclasses.replace(row, ceiling_us=ceiling) for row in found]
        assert judged(unknown, wanted[:1])[wanted[0].text][1] == "missed"


def test_a_miss_by_less_than_two_standard_errors_is_told_apart() -> None:
    ours = Spread(2.0, 1.9, 2.1, 30)  # the standard error is .027
    aims = [Aim("op", BACKWARD, SHARE, value, of="copy") for value in (0.92, 0.93)]
    assert [judged(timed("op", BACKWARD, {"ours": ours}), [aim])[aim.text][1] for aim in aims] == [
        "missed, within two standard errors",
        "missed",
    ]
    found = timed("op", BACKWARD, {"ours": ours}, ceiling=Spread(1.8, 1.7, 1.9, 30))
    assert judged(found, aims[1:])[aims[1].text][1] == "missed, within two standard errors"
    ahead = [Aim("op", BACKWARD, AHEAD, value, "trl") for value in (1.48, 1.53, 1.6)]
    found = timed("op", BACKWARD, {"ours": ours, "trl": 3.0}, ceiling=None)
    found = [dataclasses.replace(row, ceiling_us=1.0) for row in found]
    said = [v for aim in ahead for v in Measured(placed([run_of(tuple(found))], ""), [], [aim]).verdicts()]
    assert [(v.met, v.remark) for v in said] == [(True, NEARLY), (False, NEARLY), (False, "")]


def test_products_that_are_computed_twice_are_in_the_ceiling() -> None:
    name = "linear_logprobs 8 tokens, hidden 4, vocabulary 16, head, JAX"  # 4 products for 3
    found = timed(name, BOTH, {"ours": 3.0, "XLA": 2.0})
    wanted = Aim(name, BOTH, LEVEL, 1.0, providers.XLA)
    assert (
        judged(found, [wanted])[wanted.text][1]
        == "missed, beyond the ceiling of products computed twice (1.20 at best)"
    )
    assert (
        judged([dataclasses.replace(row, ceiling_us=2.3) for row in found], [wanted])[wanted.text][1]
        == "missed"
    )


def test_on_jax_the_best_formula_of_xla_s_is_the_measure_and_nothing_is_allowed() -> None:
    wanted = [Aim("op, JAX", BOTH, LEVEL, 1.0, providers.XLA)]
    for xla, verdict in ((1.999, "missed"), (2.0, "met")):
        found = timed("op, JAX", BOTH, {"ours": 2.0, "ours: xla": 1.0, "XLA": 2.5, "XLA: one-hot": xla})
        ((text, (reached, said)),) = judged(found, wanted).items()
        assert text == "no slower than XLA's best formula" and said == verdict
        assert "of XLA: one-hot" in reached


def test_aims_beside_tokamax() -> None:
    found = [
        row
        for provider, us, mb in (("ours", 2.0, 80.0), ("tokamax", 2.5, 100.0))
        for row in timed("op, JAX", BOTH, {provider: us}, peak_mb=mb)
    ]
    said = judged(
        found, [Aim("op, JAX", BOTH, PLANNED, 0.2, "tokamax"), Aim("op, JAX", BOTH, AHEAD, 1.2, "tokamax")]
    )
    assert said["20% of the memory of tokamax, as XLA plans it"] == ("80%", "missed")
    assert said["1.2 times as fast as tokamax"][1] == "met"


def test_aims_of_memory_are_judged_by_processes_of_their_own() -> None:
    found = [
        row
        for name, provider, mb in (
            ("head", "ours", 1600.0),
            ("dpo", "ours", 60.0),
            ("dpo", "liger-kernel", 100.0),
        )
        for row in timed(name, BOTH, {provider: 1.0}, peak_mb=mb)
    ]
    wanted = [Aim("head", BOTH, WITHIN, 1700.0), Aim("dpo", BOTH, LEAN, 0.5, "liger-kernel")]
    assert judged(found, wanted, {("dpo", "ours"): 40.0}) == {  # the peer's is missing
        "1700 MB at most": ("1600 MB, in the process of the timed run", "met"),
        "50% of the memory of liger-kernel": ("60% of 100 MB, in the process of the timed run", "missed"),
    }
    peaks = {("head", "ours"): 1800.0, ("dpo", "ours"): 40.0, ("dpo", "liger-kernel"): 100.0}
    assert judged(found, wanted, peaks) == {
        "1700 MB at most": ("1800 MB, in processes of their own", "missed"),
        "50% of the memory of liger-kernel": ("40% of 100 MB, in processes of their own", "met"),
    }


def test_aims_on_the_host_are_beyond_an_empty_function() -> None:
    times = {"ours": 30.0, host_page.EMPTY: 10.0, providers.LIGER: 90.0}
    found = [Row("rope", p, FORWARD, wall_us=Spread.of([us])) for p, us in times.items()]
    wanted = [Aim("rope", FORWARD, HOST, 12.0), Aim("rope", FORWARD, HOST_AHEAD, 3.0, providers.LIGER)]
    assert judged(found, wanted) == {
        "12 us on the host beyond an empty function": ("20.0 us", "missed"),
        "3 times less on the host than liger-kernel": ("4.0 times less", "met"),
    }
    launch = Row(host_page.LAUNCH, providers.EAGER, FORWARD, wall_us=Spread.of([12.0]))
    reached, _ = judged([*found, launch], wanted)["12 us on the host beyond an empty function"]
    assert reached == "20.0 us (a launch by torch: 12.0)"


def test_a_backward_pass_on_another_thread_is_told() -> None:
    times = {"ours": 30.0, host_page.EMPTY: 10.0}
    found = [Row("rope", p, BACKWARD, wall_us=Spread.of([us])) for p, us in times.items()]
    wanted = [Aim("rope", BACKWARD, HOST, 15.0)]
    for hardware, said in (
        ({}, "missed, on autograd's thread, whose waking is in it"),
        ({"backward passes": "on the thread that calls"}, "missed"),
    ):
        (verdict,) = Measured(placed([run_of(tuple(found), hardware=hardware)], ""), [], wanted).verdicts()
        assert verdict.verdict == said


def test_what_costs_the_host_no_more_than_an_empty_function_meets_every_aim() -> None:
    wanted = list(host_page.aims_of("rope", FORWARD, (providers.LIGER,)))
    for ours in (10.0, 9.0):
        times = {"ours": ours, host_page.EMPTY: 10.0, providers.LIGER: 40.0}
        found = [Row("rope", p, FORWARD, wall_us=Spread.of([us])) for p, us in times.items()]
        assert judged(found, wanted) == {
            "12 us on the host beyond an empty function": (f"{ours - 10:.1f} us", "met"),
            "3 times less on the host than liger-kernel": (host_page.NO_MORE, "met"),
        }
        (line,) = (line for line in map(plain, host_page.table(found)) if line.startswith("| rope"))
        assert f"| {ours - 10:.1f} | 12 | 30.0 | {host_page.NO_MORE} |  |  |" in line


def test_a_figure_that_misses_its_aim_does_not_look_like_it() -> None:
    found = timed("op", FORWARD, {"ours": 1030.2, "torch.compile": 1000.0, "trl": 2059.7})
    found[0] = dataclasses.replace(found[0], ceiling_us=0.9 * 1030.2 - 0.1)
    wanted = [
        Aim("op", FORWARD, LEVEL, 1.03, "torch.compile"),
        Aim("op", FORWARD, AHEAD, 2.0, "trl"),
        Aim("op", FORWARD, SHARE, 0.9, of="copy"),
    ]
    assert [(said.split(" ")[0], verdict) for said, verdict in judged(found, wanted).values()] == [
        ("1.0302", "missed"),
        ("1.999", "missed"),
        ("89.99%", "missed"),
    ]
    times = {"ours": 20.0, host_page.EMPTY: 10.0, providers.LIGER: 39.9}
    on_the_host = [Row("rope", p, BACKWARD, wall_us=Spread.of([us])) for p, us in times.items()]
    (line,) = (line for line in map(plain, host_page.table(on_the_host)) if line.startswith("| rope"))
    assert "| 2.99 |" in line and line.endswith("missed: 3 times |")
    of_memory = [Aim("op", BOTH, WITHIN, 1700.0), Aim("op", BOTH, LEAN, 0.5, "trl")]
    said = judged([], of_memory, {("op", "ours"): 1700.4, ("op", "trl"): 3395.0})
    assert [reached.split(",")[0] for reached, _ in said.values()] == ["1700.4 MB", "50.1% of 3395 MB"]
    assert judged([], of_memory[:1], {("op", "ours"): 1700.0})["1700 MB at most"][1] == "met"


def test_an_aim_beside_an_absent_peer_says_why_it_was_not_measured() -> None:
    run = run_of(tuple(timed("op, JAX", BOTH, {"ours": 2.0})), absent={"tokamax": "does not import"})
    wanted = [Aim(entry, BOTH, AHEAD, 1.2, "tokamax") for entry in ("op, JAX", "other, JAX")]
    found = Measured(placed([run], ""), [], wanted).verdicts()
    assert [v.verdict + ": " + v.reached for v in found] == [
        "not measured: absent: does not import",
        "not measured: no run has it",
    ]


def test_other_bits_at_a_second_call_are_an_aim_missed() -> None:
    assert judged(timed("op", FORWARD, {"ours": 2.0}, repeats=True), []) == {}
    found = judged(timed("op", FORWARD, {"ours": 2.0}, repeats=False), [])
    assert found == {"the same bits twice": ("other bits", "missed")}


def test_every_aim_is_counted_and_what_was_given_up_is_told(tmp_path: Path) -> None:
    save(tmp_path / "results" / "gpu" / "norms.json", [run_of(rows())])
    render(Options(tmp_path / "results", tmp_path / "docs", tmp_path / "none", plots=False))
    index = (tmp_path / "docs" / "README.md").read_text()
    n = len(aims.held())
    assert f"### Aims: {n + 1}\n\n0 met, 0 missed, {n} not measured, 1 given up." in index
    assert "the loss kernel beside the next chunk's products" in index


# ------------------------------------------------------------------------------------------------- what is committed


def test_every_provider_has_a_style_of_its_own() -> None:
    assert plots.STYLES.keys() == {"ours", providers.XLA, *providers.PROVIDERS}
    assert len(set(plots.STYLES.values())) == len(plots.STYLES)


def test_what_is_committed_is_what_the_report_makes(tmp_path: Path) -> None:
    readme, docs = tmp_path / "README.md", tmp_path / "docs"
    readme.write_text((ROOT / "README.md").read_text())
    render(Options(output=docs, readme=readme, plots=False))
    committed = ROOT / "docs" / "benchmarks"
    pages = {path.relative_to(docs): path.read_text() for path in docs.rglob("*.md")}
    again = "run `python -m benchmarks report`, and commit what it writes"
    assert {p.relative_to(committed) for p in committed.rglob("*.md")} == pages.keys(), again
    for name, text in pages.items():
        assert (committed / name).read_text() == text, f"{name}: {again}"
        for plot in re.findall(r"!\[[^]]*\]\(([^)]+)\.svg\)", text):
            for suffix in (".svg", ".png"):
                assert ((committed / name).parent / f"{plot}{suffix}").stat().st_size > 1000, (
                    f"{plot}: {again}"
                )
    assert readme.read_text() == (ROOT / "README.md").read_text(), f"README.md: {again}"


def test_every_link_to_a_row_finds_it() -> None:
    committed = ROOT / "docs" / "benchmarks"
    seen = 0
    for page in (ROOT / "README.md", *committed.rglob("*.md")):
        for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
            target = (page.parent / link).resolve() if link else page
            if target.is_relative_to(committed):
                assert f'<a id="{anchor}"></a>' in _text(target), f"{page.name}: {link}#{anchor}"
                seen += 1
    assert seen > 1000


def test_every_link_of_the_readme_to_the_measurements_finds_its_page() -> None:
    links = re.findall(r"\]\((docs/benchmarks/[^)#]*)\)", (ROOT / "README.md").read_text())
    assert len(links) >= 3
    for link in links:
        assert (ROOT / link).is_file(), link


_texts: dict[Path, str] = {}


def _text(path: Path) -> str:
    return _texts.setdefault(path, path.read_text())


def test_the_report_needs_neither_torch_nor_jax(tmp_path: Path) -> None:
    said = run_without(
        ("torch", "jax", "triton", "matplotlib"),
        f"""
sys.path.append({str(ROOT)!r})
from pathlib import Path
from benchmarks.report import Options, render
render(Options(output=Path({str(tmp_path)!r}), readme=Path({str(tmp_path / "none")!r}), plots=False))
""",
    )
    assert str(tmp_path / "nvidia-h200" / "norms.md") in said
    index = (ROOT / "docs" / "benchmarks" / "README.md").read_text()
    assert (tmp_path / "README.md").read_text() == index


def test_registers_of_every_target_are_shown() -> None:
    page = (ROOT / "docs" / "benchmarks" / "offline.md").read_text()
    assert f"| {' | '.join(PRESETS)} |" in page


def test_without_results_there_is_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="benchmarks all"):
        render(Options(results=tmp_path / "none", output=tmp_path, readme=tmp_path / "README.md"))

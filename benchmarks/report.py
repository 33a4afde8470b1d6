"""`python -m benchmarks report`: tables and plots of the rows that are kept, and the figures of the README.

One page per file of results; the first page (docs/benchmarks/README.md) tells what was aimed at and missed, where a
peer is ahead, and who was absent. A command whose results are no rows of `benchmarks.rows` brings a `page` of its own,
and `behind` what the first page tells of it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import figures, memory
from benchmarks.aims import Aim, Peaks, aims, compared
from benchmarks.commands import COMMANDS, module_of
from benchmarks.groups import GROUPS
from benchmarks.marked import renewed
from benchmarks.models import readme as models_readme
from benchmarks.plots import bars
from benchmarks.rows import RESULTS, ROOT, Row, Run, load, number, rows_of

OUTPUT = ROOT / "docs" / "benchmarks"


def files(results: Path = RESULTS) -> Iterator[Path]:
    """Every file of results, those of groups in their order and then the others, device by device."""
    order = [*GROUPS, *COMMANDS]
    for folder in sorted(p for p in results.glob("*") if p.is_dir()):
        found = {path.stem: path for path in folder.glob("*.json")}
        yield from (found.pop(name) for name in order if name in found)
        yield from (found[name] for name in sorted(found))


def line_of(row: Row) -> str:
    """One line of a table."""
    place = f'<a id="{row.anchor}"></a>{row.entry}'
    if row.device_us is None:
        return f"| {place} | {row.provider} | | {row.note} | | | | {number(row.error, '.1e')} | | |"
    assert row.wall_us is not None
    spread = f"{row.device_us.low:.1f} to {row.device_us.high:.1f}"
    clock = (
        ""
        if row.clock_mhz is None
        else f"{row.clock_mhz:.0f} MHz, {row.power_w:.0f} W, {row.temperature_c:.0f} °C"
    )
    return (
        f"| {place} | {row.provider} | {row.which} | {row.device_us.median:.1f} ({spread}) "
        f"| {number(row.device_share, '.2f')} | {row.wall_us.median:.1f} | {number(row.wall_share, '.2f')} "
        f"| {number(row.error, '.1e')} | {number(row.peak_mb, '.0f')} | {clock} |"
    )


HEAD = """# {title}

Device: {device}. Rows: [{rows}](../../../benchmarks/{rows}).

Times are microseconds, medians (20th to 80th percentile): on the device, with operands that are not in the cache, and
of eager calls by the wall clock. A share is the ceiling's time over the op's: of a copy of the least bytes, or of the
op's matrix products, in the same run. The error is the largest relative one of outputs and gradients against float64,
on a few tokens. "ours: ..." is a variant of ours, not the default.

"""

TABLE = """| op | implementation | pass | device | share | wall | share | error | peak MB | clock, power, heat |
|---|---|---|---|---|---|---|---|---|---|
"""

AIMED = """
## What is aimed at

| op | pass | aim | reached | |
|---|---|---|---|---|
"""

SLOWER = """
## Where a peer is faster on the device

| op | pass | ours | peer | its time | |
|---|---|---|---|---|---|
"""


def aimed_line(aim: Aim) -> str:
    """One line of the table of aims."""
    return f"| {aim.entry} | {aim.which} | {aim.text} | {aim.reached} | {'' if aim.met else 'missed'} |"


def lost(rows: Iterable[Row]) -> list[str]:
    """Where a peer was faster on the device, by more than the spread, or within it."""
    found = []
    for mine, other in compared(rows):
        assert mine.device_us is not None and other.device_us is not None
        a, b = mine.device_us, other.device_us
        if b.median < a.median:
            within = "within the spread" if b.high >= a.low else ""
            found.append(
                f"| {mine.entry} | {mine.which} | {a.median:.1f} | {other.provider} | {b.median:.1f} | {within} |"
            )
    return found


def absent_of(runs: Iterable[Run]) -> dict[str, str]:
    """Providers that could not be measured, as the newest run says."""
    found: dict[str, str] = {}
    for run in runs:
        found = {**found, **run.absent}
    return found


def page_of(path: Path, runs: Sequence[Run], picture: str, peaks: Peaks) -> str:
    """A page in Markdown of one file of rows; `peaks` are those of the device."""
    rows = rows_of(runs)
    here = {row.entry for row in rows}
    title = GROUPS.get(path.stem, COMMANDS[path.stem].text if path.stem in COMMANDS else path.stem)
    parts = [
        HEAD.format(
            title=title[0].upper() + title[1:], device=runs[-1].device, rows=path.relative_to(path.parents[2])
        )
    ]
    parts += [*(run.about for run in runs), "\n"]
    if gone := absent_of(runs):
        parts.append("".join(f"- Absent: {name}, {reason}.\n" for name, reason in gone.items()) + "\n")
    if twice := [row.repeats for row in rows if row.repeats is not None]:
        parts.append(f"A second call of ours gave the same bits in {sum(twice)} of {len(twice)} cases.\n\n")
    parts += [f"![shares of the ceiling]({picture})\n\n", TABLE, "\n".join(map(line_of, rows)), "\n"]
    if found := list(aims(rows, {key: mb for key, mb in peaks.items() if key[0] in here})):
        parts += [AIMED, "\n".join(map(aimed_line, found)), "\n"]
    slower = lost(rows)
    parts.append(SLOWER + "\n".join(slower) + "\n" if slower else "\nNo peer was faster on the device.\n")
    return "".join(parts)


def is_rows(path: Path) -> bool:
    """Whether a file holds rows of `benchmarks.rows`."""
    found = json.loads(path.read_text())
    return isinstance(found, dict) and "runs" in found


def _of_command(path: Path, function: str) -> Any:
    """A function of the command whose results NAME.json or NAME-....json these are; None where there is none."""
    for name in COMMANDS:
        if path.stem == name or path.stem.startswith(f"{name}-"):
            return getattr(importlib.import_module(module_of(name)), function, None)
    return None


def own_page(path: Path) -> str | None:
    """The page that a command makes of its results, if it does."""
    page = _of_command(path, "page")
    return None if page is None else page(path)


def own_plots(path: Path, target: Path) -> None:
    """Let a command that makes its page draw the plots that the page shows."""
    plots = _of_command(path, "plots")
    if plots is not None:
        plots(path, target)


def own_behind(path: Path) -> str:
    """What a command that makes its page tells on the first page: aims missed, and where others are ahead."""
    behind = _of_command(path, "behind")
    return "" if behind is None else str(behind(path))


INDEX = """# Measurements

Written by `python -m benchmarks report` from the rows in `benchmarks/results`; `python -m benchmarks all` measures them
anew. How: [benchmarks/README.md](../../benchmarks/README.md).
"""


def name_of(path: Path) -> str:
    """The device that a file of results is of."""
    found = re.search(r'"device": "([^"]+)"', path.read_text())
    return found.group(1) if found else path.parent.name


def overview(rows: Iterable[Row], target: Path) -> bool:
    """A plot of the ops that the README shows; whether there is any."""
    shown = [(entry, which) for _, entry, which in figures.SHOWN]
    found = [
        r
        for r in rows
        if (r.entry, r.which) in shown and r.provider in figures.PEERS and r.device_share is not None
    ]
    if found:
        bars(sorted(found, key=lambda r: shown.index((r.entry, r.which))), target)
    return bool(found)


def index_of(
    device: str,
    pages: list[tuple[str, str]],
    runs: Sequence[Run],
    picture: str,
    peaks: Peaks,
    behind: Iterable[str] = (),
) -> str:
    """The part of the first page about one device; `pages` are (link, what is on it), `behind` sections at its end."""
    rows = rows_of(runs)
    found = list(aims(rows, peaks))
    missed = [aim for aim in found if not aim.met]
    parts = [f"\n## {device}\n\n", "".join(f"- [{text}]({link})\n" for link, text in pages)]
    if picture:
        parts.append(f"\n![shares of the ceiling]({picture})\n")
    if gone := absent_of(runs):
        parts.append("\nAbsent: " + "; ".join(f"{name} ({reason})" for name, reason in gone.items()) + ".\n")
    if found:
        parts.append(f"\n### Aims missed: {len(missed)} of {len(found)}\n\n")
    if missed:
        parts.append("| op | pass | aim | reached | |\n|---|---|---|---|---|\n")
        parts += [aimed_line(aim) + "\n" for aim in missed]
    slower, comparisons = lost(rows), len(list(compared(rows)))
    if comparisons:
        parts.append(f"\n### Where a peer is faster on the device: {len(slower)} of {comparisons}\n")
    if slower:
        parts.append(
            "\n| op | pass | ours | peer | its time | |\n|---|---|---|---|---|---|\n"
            + "\n".join(slower)
            + "\n"
        )
    parts += [f"\n{section}" for section in behind if section]
    return "".join(parts)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Where to."""
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of results, with one per device"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the pages")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="whose figures are renewed")


def _drop_others(folder: Path, stems: set[str]) -> None:
    """Remove pages whose results are gone, which nothing links to any more."""
    for page in folder.glob("*.md"):
        if page.stem not in stems:
            print(f"{page}: removed; its results are gone")
            for suffix in (".md", ".png", ".svg"):
                page.with_suffix(suffix).unlink(missing_ok=True)


def run(options: argparse.Namespace) -> int:
    """Write every page and plot."""
    by_device: dict[str, list[Path]] = {}
    for path in files(options.results):
        by_device.setdefault(path.parent.name, []).append(path)
    if not by_device:
        raise SystemExit(f"No results in {options.results}: `python -m benchmarks all` measures them.")
    index = INDEX
    for folder, paths in by_device.items():
        target = options.output / folder
        target.mkdir(parents=True, exist_ok=True)
        pages: list[tuple[str, str]] = []
        every: list[Run] = []
        behind: list[str] = []
        peaks = memory.peaks(options.results / folder / "memory.json")
        for path in paths:
            text = own_page(path)
            if text is not None:
                own_plots(path, target)
                behind.append(own_behind(path))
            if text is None and is_rows(path):
                runs = load(path)
                every += runs
                bars(rows_of(runs), target / path.stem)
                text = page_of(path, runs, f"{path.stem}.svg", peaks)
            if text is None:
                print(f"{path}: no page; its command has no `page`, and it holds no rows")
                continue
            (target / f"{path.stem}.md").write_text(text)
            pages.append((f"{folder}/{path.stem}.md", text.splitlines()[0].lstrip("# ")))
            print(target / f"{path.stem}.md")
        _drop_others(target, {path.stem for path in paths})
        device = name_of(paths[-1])
        picture = f"{folder}/overview.svg" if overview(rows_of(every), target / "overview") else ""
        index += index_of(device, pages, every, picture, peaks, behind)
    (options.output / "README.md").write_text(index)
    if options.readme.exists():
        text = renewed(options.readme.read_text(), "figures", figures.lines(options.results))
        options.readme.write_text(renewed(text, "models", models_readme.lines(options.results)))
    return 0

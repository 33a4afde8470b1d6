"""`python -m benchmarks report`: tables and plots of the rows that are kept, and the figures of the README.

One page per file of results; the first page (docs/benchmarks/README.md) tells what was aimed at and missed, where a
peer is ahead, and who was absent. It needs neither torch nor JAX; without matplotlib, `--no-plots` leaves plots as
they are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from benchmarks import figures, first_page, host_page, memory_page, offline_page, slower
from benchmarks.commands import COMMANDS
from benchmarks.groups import GROUPS
from benchmarks.marked import renewed
from benchmarks.models import readme as models_readme
from benchmarks.models import report as models_page
from benchmarks.models.case import Result
from benchmarks.models.plots import plots
from benchmarks.pages import page_of, parts_of
from benchmarks.placed import Placed, placed
from benchmarks.plots import shares
from benchmarks.rows import RESULTS, ROOT, Run, load

OUTPUT = ROOT / "docs" / "benchmarks"


class Page(Protocol):
    """What shows results that are not rows of `benchmarks.rows`, or shows them in another way."""

    def page(self, path: Path) -> str:
        """In Markdown."""

    def behind(self, path: Path) -> str:
        """What the first page tells of it: where others are ahead."""


PAGES: dict[str, Page] = {"host": host_page, "memory": memory_page, "models": models_page}
"""By the command whose results they are."""


class Options(NamedTuple):
    """Where from, where to, and whether plots are drawn."""

    results: Path = RESULTS
    output: Path = OUTPUT
    readme: Path = ROOT / "README.md"
    plots: bool = True


def files(folder: Path) -> Iterator[Path]:
    """A device's files of results, those of groups in their order and then the others."""
    found = {path.stem: path for path in folder.glob("*.json")}
    yield from (found.pop(name) for name in (*GROUPS, *COMMANDS) if name in found)
    yield from (found[name] for name in sorted(found))


def device_of(path: Path) -> tuple[str, str]:
    """The device that a file of results is of, and the day of its newest run."""
    runs = json.loads(path.read_text())["runs"]
    return runs[-1]["device"], max(run["date"] for run in runs)


def overview(rows: Iterable[Placed], target: Path, plots: bool) -> bool:
    """A plot of the ops that the README shows; whether there is any."""
    shown = [(entry, which) for _, entry, which in figures.SHOWN]
    found = [
        r.row
        for r in rows
        if (r.row.entry, r.row.which) in shown and r.row.provider in figures.PEERS and r.row.device_share
    ]
    if found and plots:
        shares(sorted(found, key=lambda r: shown.index((r.entry, r.which))), target)
    return bool(found)


def of_device(folder: Path, options: Options) -> str:
    """Write the pages and plots of a device; its part of the first page."""
    target = options.output / folder.name
    target.mkdir(parents=True, exist_ok=True)
    paths = list(files(folder))
    peaks = memory_page.peaks(folder / "memory.json")
    pages: list[first_page.Page] = []
    runs: list[Run] = []
    rows: list[Placed] = []
    behind: list[str] = []
    for path in paths:
        own = PAGES.get(path.stem)
        link = f"{folder.name}/{path.stem}.md"
        if own is not None:
            text = own.page(path)
            behind.append(own.behind(path))
            if path.stem == "models" and options.plots:
                results = models_page.grouped(placed(load(path, Result.from_json), ""))
                plots([[p.row for p in group] for group in results.values()], target)
        else:
            text = page_of(path, load(path), peaks)
            for name, found in parts_of(path.stem, placed(load(path), "")).items():
                if options.plots:
                    shares([r.row for r in found], target / name)
        if path.stem not in ("memory", "models"):
            runs += load(path)
            rows += placed(load(path), link)
        (target / f"{path.stem}.md").write_text(text)
        pages.append((link, text.splitlines()[0].lstrip("# ")))
        print(target / f"{path.stem}.md")
    picture = f"{folder.name}/overview.svg" if overview(rows, target / "overview", options.plots) else ""
    device, _ = device_of(paths[-1])
    seen_from_here = [Placed(p.row, p.run, f"{folder.name}/{p.page}") for p in peaks]
    return first_page.section(device, pages, runs, picture, rows, seen_from_here, behind)


def _drop_others(output: Path, text: str) -> None:
    """Remove pages and plots that nothing links to any more, their results being gone."""
    linked = text + "".join(page.read_text() for page in output.glob("*/*.md") if _is_linked(page, text))
    for path in sorted(output.glob("*/*.*")):
        if not _is_linked(path.with_suffix(".svg") if path.suffix == ".png" else path, linked):
            print(f"{path}: removed; its results are gone")
            path.unlink()


def _is_linked(path: Path, text: str) -> bool:
    return f"({path.name})" in text or f"({path.parent.name}/{path.name})" in text


def arguments(parser: argparse.ArgumentParser) -> None:
    """Where to."""
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of results, with one per device"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the pages")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="whose figures are renewed")
    parser.add_argument("--no-plots", action="store_true", help="leave the plots as they are")


def run(options: argparse.Namespace) -> int:
    """Write every page and plot."""
    render(Options(options.results, options.output, options.readme, not options.no_plots))
    return 0


def render(options: Options) -> None:
    """Write every page and plot, and the figures of the README."""
    folders = [p for p in sorted(options.results.glob("*")) if p.is_dir() and any(p.glob("*.json"))]
    if not folders:
        raise SystemExit(f"No results in {options.results}: `python -m benchmarks all` measures them.")
    # The device that was measured last comes first.
    folders.sort(key=lambda p: max(device_of(path)[1] for path in files(p)), reverse=True)
    text = first_page.HEAD + "".join(of_device(folder, options) for folder in folders)
    text += first_page.given_up()
    if offline := offline_page.page(options.results):
        (options.output / "offline.md").write_text(offline)
        text += "\n## Without a GPU\n\n- [What is counted, planned and compiled](offline.md)\n"
    (options.output / "README.md").write_text(text)
    _drop_others(options.output, text)
    if options.readme.exists():
        front = options.readme.read_text()
        for name, lines in (
            ("figures", figures.lines),
            ("models", models_readme.lines),
            ("slower", slower.lines),
        ):
            front = renewed(front, name, lines(options.results))
        options.readme.write_text(front)

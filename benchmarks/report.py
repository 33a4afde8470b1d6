"""`python -m benchmarks report`: tables and plots of the rows that are kept, in docs/benchmarks."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from benchmarks.rows import RESULTS, Row, Run

OUTPUT = Path(__file__).parent.parent / "docs" / "benchmarks"


def runs() -> dict[Path, Run]:
    """Every run that is kept, by its file."""
    return {path: Run.load(path) for path in sorted(RESULTS.glob("*/*.json"))}


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def lines_of(row: Row) -> str:
    """One line of a table."""
    if row.device_us is None:
        return f"| {row.entry} | {row.provider} | | {row.note} | | | | {_number(row.error, '.1e')} | |"
    assert row.wall_us is not None
    spread = f"{row.device_us.low:.1f} to {row.device_us.high:.1f}"
    return (
        f"| {row.entry} | {row.provider} | {row.which} | {row.device_us.median:.1f} ({spread}) "
        f"| {_number(row.device_share, '.2f')} | {row.wall_us.median:.1f} | {_number(row.wall_share, '.2f')} "
        f"| {_number(row.error, '.1e')} | {_number(row.peak_mb, '.0f')} |"
    )


def is_peer(provider: str) -> bool:
    """Whether it is another's: variants of ours have names of several words."""
    return provider == "torch eager" or (provider != "ours" and " " not in provider)


def lost(rows: Iterable[Row]) -> list[str]:
    """Where a peer was faster on the device."""
    rows = [r for r in rows if r.device_us is not None]
    ours = {(r.entry, r.which): r for r in rows if r.provider == "ours"}
    found = []
    for row in rows:
        mine = ours.get((row.entry, row.which))
        if mine is None or not is_peer(row.provider):
            continue
        assert mine.device_us is not None and row.device_us is not None
        if row.device_us.median < mine.device_us.median:
            times = mine.device_us.median, row.device_us.median
            found.append(f"| {row.entry} | {row.which} | {times[0]:.1f} | {row.provider} | {times[1]:.1f} |")
    return found


HEAD = """# {device}

{date}; {versions}. Command: `{command}`. Rows: `{rows}`.

A copy of 2 GB moved {before} TB/s before and {after} after. Times are microseconds, medians (20th to 80th percentile):
on the device, with operands that are not in the cache, and of eager calls by the wall clock. A share is the ceiling's
time over the op's: of a copy of the least bytes, or of the op's matrix products, in the same run. The error is the
largest relative one of outputs and gradients against float64, on a few tokens. An implementation of several words is a
variant of ours.

"""

TABLE = """| op | implementation | pass | device | share | wall | share | error | peak MB |
|---|---|---|---|---|---|---|---|---|
"""

SLOWER = """
## Where a peer is faster on the device

| op | pass | ours | peer | its time |
|---|---|---|---|---|
"""


def text_of(run: Run, path: Path) -> str:
    """A page in Markdown."""
    head = HEAD.format(
        device=run.device,
        date=run.date,
        versions=", ".join(f"{name} {version}" for name, version in run.versions.items()),
        command=run.command,
        rows=path.relative_to(RESULTS.parent),
        before=run.copy_tb_s[0],
        after=run.copy_tb_s[1],
    )
    losses = lost(run.rows)
    slower = SLOWER + "\n".join(losses) if losses else "\nNo peer was faster on the device."
    return head + TABLE + "\n".join(map(lines_of, run.rows)) + "\n" + slower + "\n"


def plot(run: Run, target: Path) -> None:
    """Shares of the ceiling on the device, as bars, in PNG and SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [
        r for r in run.rows if r.device_share is not None and (r.provider == "ours" or is_peer(r.provider))
    ]
    labels = list(dict.fromkeys(f"{r.entry}, {r.which}" for r in rows))
    providers = list(dict.fromkeys(r.provider for r in rows))
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.24 * len(labels)))
    height = 0.8 / len(providers)
    for i, provider in enumerate(providers):
        shares = {f"{r.entry}, {r.which}": r.device_share or 0.0 for r in rows if r.provider == provider}
        places = [labels.index(name) + i * height for name in shares]
        axes.barh(places, list(shares.values()), height, label=provider)
    axes.set_yticks([i + 0.4 for i in range(len(labels))], labels, fontsize=6)
    axes.set_ylim(len(labels), 0)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("share of the ceiling, on the device")
    axes.legend(fontsize=6)
    figure.tight_layout()
    for suffix in ("png", "svg"):
        figure.savefig(target.with_suffix(f".{suffix}"), dpi=150)
    pyplot.close(figure)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Where to."""
    parser.add_argument("--output", type=Path, default=OUTPUT)


def run(options: argparse.Namespace) -> int:
    """Write a page and a plot for every run that is kept; the exit status is 1 if there is none."""
    pages = []
    for path, found in runs().items():
        name = f"{path.parent.name}-{path.stem}"
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / f"{name}.md").write_text(text_of(found, path) + f"\n![shares]({name}.png)\n")
        plot(found, options.output / name)
        pages.append(name)
        print(options.output / f"{name}.md")
    if pages:
        index = "\n".join(f"- [{name}]({name}.md)" for name in pages)
        (options.output / "README.md").write_text(
            f"# Measurements\n\nWritten by `python -m benchmarks report`.\n\n{index}\n"
        )
    return 0 if pages else 1

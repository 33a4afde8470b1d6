"""The results of whole models as a page with tables, and plots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.models.case import ARMS, Case, Result
from benchmarks.plots import settle
from benchmarks.rows import Run, load, number, rows_of, slug

Groups = dict[tuple[Any, ...], list[Result]]

HEAD = """# Training steps of whole models

Device: {device}. Random weights, the same in every arm. `eager` is the Hugging Face
model with torch's scaled dot product attention, `compile` the same under torch.compile, `liger` with liger-kernel as
it is installed, `ours` with this package, `ours-compile` both; `flax-plain` and `flax-ours` are this package's Flax
decoder on plain Flax layers and on its own. Every row is a process of its own. A step is forward, backward and AdamW
(all in the weights' dtype); its time is from the end of one to the end of the next, the median (20th to 80th
percentile). Busy is the sum over the device's kernels: where it is well below the step, the host is what is waited
for. The peak has weights, gradients and optimiser states in it, in 1e9 bytes; reserved is what the allocator took.
The share is the model's operations (none for recomputation) over those of a matrix product of 8192 x 8192 x 8192 in
the same process, whose rate, before and after, stands beside it. The loss is that of the first step.

"""

STEP_TABLE = """| arm | step, ms | tokens/s | to {base} | busy | launches | peak | reserved | share | product | loss |
|---|---|---|---|---|---|---|---|---|---|---|
"""

LONGEST_TABLE = """| arm | fits | runs out of memory | tried: tokens (seconds, GB) |
|---|---|---|---|
"""

CURVE_TABLE = """| arm | first loss | last loss | largest difference from {base} |
|---|---|---|---|
"""


PLOTS = {"step": "steps", "longest": "longest", "curve": "curves"}
"""What a plot's file is called after `models-`."""


def page(path: Path) -> str:
    """The report's page, of the file of results."""
    runs = load(path, Result.from_json)
    groups = grouped(runs)
    text = HEAD.format(device=runs[-1].device)
    for title, what, table in (
        ("Steps", "step", step_table),
        ("Longest context at batch one", "longest", longest_table),
        ("Losses of a training", "curve", curve_table),
    ):
        wanted = [rows for key, rows in groups.items() if key[0] == what]
        if not wanted:
            continue
        text += f"## {title}\n\n![{title}](models-{PLOTS[what]}.svg)\n\n"
        for rows in wanted:
            case = rows[0].case
            text += f'### <a id="{anchor_of(case)}"></a>{case.title}\n\n{table(rows)}\n'
    text += lost_section(groups) + "## Where the rows are from\n\n"
    return text + "".join(run.about for run in runs)


def anchor_of(case: Case) -> str:
    """Where the table of its group stands on the page."""
    return slug(f"{case.what} {case.title}")


def plots(path: Path, folder: Path) -> None:
    """Draw what the page shows into the folder, as PNG and SVG."""
    groups = grouped(load(path, Result.from_json))
    for what, draw in (("step", steps), ("longest", longest), ("curve", curves)):
        wanted = {key: rows for key, rows in groups.items() if key[0] == what}
        if wanted:
            figure = draw(wanted)
            target = folder / f"models-{PLOTS[what]}"
            figure.savefig(target.with_suffix(".png"), dpi=130, metadata={"Software": None})
            figure.savefig(target.with_suffix(".svg"))
            _pyplot().close(figure)


def grouped(runs: Iterable[Run]) -> Groups:
    """Results that differ in the arm alone."""
    found: Groups = {}
    for row in rows_of(runs):
        found.setdefault(row.case.group, []).append(row)
    return {key: sorted(rows, key=lambda row: ARMS.index(row.case.arm)) for key, rows in found.items()}


def base_of(rows: Sequence[Result]) -> Result:
    """What the arms of a group are compared with."""
    return next((row for row in rows if row.case.arm in ("eager", "flax-plain")), rows[0])


def step_table(rows: Sequence[Result]) -> str:
    """One line for each arm."""
    base = base_of(rows)
    text = STEP_TABLE.format(base=base.case.arm)
    for row in rows:
        step, arm = row.step, row.case.arm
        peaks = f"{number(row.peak_gb, '.2f')} | {number(row.reserved_gb, '.1f')}"
        if step is None:
            at = "" if row.peak_gb is None else f" (at {row.peak_gb:.1f} GB)"
            text += f"| {arm} | {row.note}{at} | | | | | | | | | |\n"
            continue
        ratio = "" if not base.tokens_s or not row.tokens_s else f"{row.tokens_s / base.tokens_s:.2f}"
        rates = "" if row.product_tflops is None else "{:.0f}, {:.0f}".format(*row.product_tflops)
        text += (
            f"| {arm} | {step.median:.1f} ({step.low:.1f} to {step.high:.1f}) | {row.tokens_s:.0f} "
            f"| {ratio} | {number(row.busy_ms, '.1f')} | {number(row.launches, 'd')} | {peaks} "
            f"| {number(row.utilisation, '.2f')} | {rates} | {row.losses[0]:.4f} |\n"
        )
    for row in (row for row in rows if row.kernels):
        text += f"\nKernels of a step, `{row.case.arm}`:\n\n| kernel | calls | ms |\n|---|---|---|\n"
        text += "".join(f"| `{name[:90]}` | {calls} | {ms:.2f} |\n" for name, calls, ms in row.kernels[:15])
    return text


def longest_table(rows: Sequence[Result]) -> str:
    """One line for each arm."""
    text = LONGEST_TABLE
    for row in rows:
        probes = ", ".join(
            f"{tokens} ({peak:.0f})" if ms is None else f"{tokens} ({ms / 1e3:.1f}, {peak:.0f})"
            for tokens, ms, peak in row.probes
        )
        if row.fits is None:
            text += f"| {row.case.arm} | {row.note} | | {probes} |\n"
        else:
            fails = "not reached" if row.fails is None else f"{row.fails:,}"
            text += f"| {row.case.arm} | {row.fits:,} | {fails} | {probes} |\n"
    return text


def curve_table(rows: Sequence[Result]) -> str:
    """One line for each arm."""
    base = base_of(rows)
    text = CURVE_TABLE.format(base=base.case.arm)
    for row in rows:
        if not row.losses:
            text += f"| {row.case.arm} | {row.note} | | |\n"
            continue
        worst = ""
        if base.losses and row is not base:
            apart = [abs(a - b) for a, b in zip(row.losses, base.losses, strict=False)]
            worst = f"{max(apart):.1e} at step {apart.index(max(apart)) + 1}"
        text += f"| {row.case.arm} | {row.losses[0]:.4f} | {row.losses[-1]:.4f} | {worst} |\n"
    return text


LOST_TABLE = """| case | arm | | its | ours |
|---|---|---|---|---|
"""


def lost(groups: Groups) -> list[str]:
    """Lines of a table: where another arm is faster than ours, takes less memory or has a longer context."""
    found = []
    for row in (row for rows in groups.values() for row in rows):
        mine = next((r for r in groups[row.case.group] if r.case.arm in ("ours", "flax-ours")), None)
        if mine is None or row.case.arm in ("ours", "ours-compile", "flax-ours"):
            continue
        title = f"{row.case.title} | {row.case.arm}"
        if row.step and mine.step is None:
            found.append(f"| {title} | ms | {row.step.median:.1f} | {mine.note} |")
        if row.step and mine.step and row.step.median < mine.step.median:
            found.append(f"| {title} | ms | {row.step.median:.1f} | {mine.step.median:.1f} |")
        if row.step and mine.step and (row.peak_gb or 0) < (mine.peak_gb or 0):
            found.append(f"| {title} | peak GB | {row.peak_gb:.2f} | {mine.peak_gb:.2f} |")
        if row.fits and row.fits > (mine.fits or 0):
            found.append(f"| {title} | longest context | {row.fits} | {mine.fits} |")
    return found


def lost_section(groups: Groups) -> str:
    """Where another arm is ahead of ours, on the page."""
    found = lost(groups)
    head = "## Where another arm is ahead of ours\n\n"
    return head + (LOST_TABLE + "\n".join(found) if found else "Nowhere.") + "\n\n"


def behind(path: Path) -> str:
    """What the first page tells of a file of results: where another arm is ahead of ours."""
    found = lost(grouped(load(path, Result.from_json)))
    head = "### Whole models: where another arm is ahead of ours\n\n" + LOST_TABLE
    return head + "\n".join(found) + "\n" if found else ""


def _pyplot() -> Any:
    settle()
    from matplotlib import pyplot

    return pyplot


COLOURS = dict(zip(ARMS, ("C7", "C1", "C2", "C0", "C9", "C7", "C0"), strict=True))
"""An arm's colour is the same in every plot."""


def _bars(axes: Any, groups: Groups, value: Callable[[Result], float | None], label: str) -> None:
    titles = [rows[0].case.title for rows in groups.values()]
    arms = [arm for arm in ARMS if any(row.case.arm == arm for rows in groups.values() for row in rows)]
    height = 0.8 / len(arms)
    for i, arm in enumerate(arms):
        for place, rows in enumerate(groups.values()):
            row = next((r for r in rows if r.case.arm == arm), None)
            if row is None:
                continue
            found = value(row)
            axes.barh(place + i * height, found or 0.0, height, color=COLOURS[arm])
            text = row.note[:24] if found is None else f" {found:,.0f}" if found >= 1000 else f" {found:.4g}"
            axes.text(found or 0.0, place + i * height, text, fontsize=6, va="center")
        axes.barh(0, 0, color=COLOURS[arm], label=arm)
    axes.set_yticks([i + 0.4 for i in range(len(titles))], titles, fontsize=7)
    axes.set_ylim(len(titles), -0.2)
    axes.set_xlabel(label)
    axes.margins(x=0.15)


def _finish(figure: Any, axes: Any) -> None:
    """One legend, above the bars."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, loc="upper center", ncols=len(labels), frameon=False)
    inches = figure.get_figheight()
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.25 / inches))


def steps(groups: Groups) -> Any:
    """Tokens per second and peak memory as bars."""
    pyplot = _pyplot()
    rows = sum(len(each) + 1 for each in groups.values())
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(14, 1.5 + 0.2 * rows), sharey=True)
    _bars(left, groups, lambda row: row.tokens_s, "tokens per second")
    _bars(right, groups, lambda row: None if row.step is None else row.peak_gb, "peak memory, 1e9 bytes")
    _finish(figure, left)
    return figure


def longest(groups: Groups) -> Any:
    """Tokens as bars."""
    pyplot = _pyplot()
    rows = sum(len(each) + 1 for each in groups.values())
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.2 * rows))
    _bars(axes, groups, lambda row: row.fits, "longest context of which a step was made, tokens")
    _finish(figure, axes)
    return figure


def curves(groups: Groups) -> Any:
    """Losses over each other, and their difference from the plain arm's below."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(
        2, len(groups), figsize=(1 + 5 * len(groups), 6), squeeze=False, sharex=True
    )
    for column, rows in enumerate(groups.values()):
        above, below = axes[0][column], axes[1][column]
        base = base_of(rows)
        for i, row in enumerate(rows):
            if not row.losses:
                continue
            # Wide below and narrow above, so that curves which cover each other are all seen.
            width = 1.0 + 1.2 * (len(rows) - 1 - i)
            above.plot(row.losses, color=COLOURS[row.case.arm], linewidth=width, label=row.case.arm)
            if row is not base and base.losses:
                apart = [a - b for a, b in zip(row.losses, base.losses, strict=False)]
                below.plot(apart, color=COLOURS[row.case.arm], linewidth=1, label=row.case.arm)
        above.set_title(rows[0].case.title, fontsize=8)
        above.set_ylabel("loss")
        above.legend(fontsize=7)
        below.set_ylabel(f"minus {base.case.arm}'s")
        below.set_xlabel("step")
    figure.tight_layout()
    return figure

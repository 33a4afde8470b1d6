"""The results of whole models as a page with tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.models.case import ARMS, Case, Result
from benchmarks.models.plots import PLOTS
from benchmarks.models.shapes import SHAPES
from benchmarks.placed import Placed, placed, with_legend
from benchmarks.rows import load, number

Groups = dict[tuple[Any, ...], list[Placed]]
"""Results that differ in the arm alone, in the order of the arms."""

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

`compile` is slower than `eager` for its attention: where it is traced, transformers builds a mask, with which, by its
source, nothing is left out that is not causal, and keys and values are repeated for all heads. Arms of one group may be
of different days and machines, whose steps differ by 3 to 4 %: less than that between two arms tells nothing. The rate
of the product stands beside each, and the share compares better; the list of runs at the end says which.

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


def page(path: Path) -> str:
    """The report's page, of the file of results."""
    runs = load(path, Result.from_json)
    groups = grouped(placed(runs, ""))
    text = HEAD.format(device=runs[-1].device)
    for title, what, table in (
        ("Steps", "step", step_table),
        ("Longest context at batch one", "longest", longest_table),
        ("Losses of a training", "curve", curve_table),
    ):
        wanted = [rows for key, rows in groups.items() if key[0] == what]
        if not wanted:
            continue
        text += f"## {title}\n\n![{title}]({PLOTS[what]}.svg)\n\n"
        for rows in wanted:
            text += f"### {rows[0].row.case.title}\n\n{table(rows)}\n"
    text += lost_section(groups) + "## Where the rows are from\n\n"
    return with_legend(text + "".join(run.about for run in runs))


def grouped(rows: Iterable[Placed]) -> Groups:
    """Results that differ in the arm alone."""
    found: Groups = {}
    for result in rows:
        found.setdefault(result.row.case.group, []).append(result)
    ordered = sorted(found.items(), key=lambda item: _order(item[1][0].row.case))
    return {key: sorted(those, key=lambda p: ARMS.index(p.row.case.arm)) for key, those in ordered}


def _order(case: Case) -> tuple[Any, ...]:
    return (
        list(SHAPES).index(case.model),
        case.train,
        case.checkpointing,
        case.tokens,
        -case.valid,
        case.dtype,
    )


def _arm(result: Placed) -> str:
    """Where its line can be linked to, with the marks of its run."""
    return f'<a id="{result.row.anchor}"></a>{result.row.case.arm}{result.marks}'


def base_of(rows: Sequence[Result]) -> Result:
    """What the arms of a group are compared with."""
    return next((row for row in rows if row.case.arm in ("eager", "flax-plain")), rows[0])


def step_table(results: Sequence[Placed]) -> str:
    """One line for each arm."""
    base = base_of([result.row for result in results])
    text = STEP_TABLE.format(base=base.case.arm)
    for result in results:
        row, arm = result.row, _arm(result)
        step = row.step
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
    for row in (result.row for result in results if result.row.kernels):
        text += f"\nKernels of a step, `{row.case.arm}`:\n\n| kernel | calls | ms |\n|---|---|---|\n"
        text += "".join(f"| `{name[:90]}` | {calls} | {ms:.2f} |\n" for name, calls, ms in row.kernels[:15])
    return text


def longest_table(results: Sequence[Placed]) -> str:
    """One line for each arm."""
    text = LONGEST_TABLE
    for result in results:
        row, arm = result.row, _arm(result)
        probes = ", ".join(
            f"{tokens} ({peak:.0f})" if ms is None else f"{tokens} ({ms / 1e3:.1f}, {peak:.0f})"
            for tokens, ms, peak in row.probes
        )
        if row.fits is None:
            text += f"| {arm} | {row.note} | | {probes} |\n"
        else:
            more = "at least " if row.is_at_least else ""
            fails = "not reached" if row.fails is None else f"{row.fails:,}"
            text += f"| {arm} | {more}{row.fits:,} | {fails} | {probes} |\n"
    return text


def curve_table(results: Sequence[Placed]) -> str:
    """One line for each arm."""
    base = base_of([result.row for result in results])
    text = CURVE_TABLE.format(base=base.case.arm)
    for result in results:
        row, arm = result.row, _arm(result)
        if not row.losses:
            text += f"| {arm} | {row.note} | | |\n"
            continue
        worst = ""
        if base.losses and row is not base:
            apart = [abs(a - b) for a, b in zip(row.losses, base.losses, strict=False)]
            worst = f"{max(apart):.1e} at step {apart.index(max(apart)) + 1}"
        text += f"| {arm} | {row.losses[0]:.4f} | {row.losses[-1]:.4f} | {worst} |\n"
    return text


LOST_TABLE = """| case | arm | | its | ours |
|---|---|---|---|---|
"""


def lost(groups: Groups) -> list[str]:
    """Lines of a table: where another arm is faster than ours, takes less memory or has a longer context.

    A context is longer where it is at least as long as one that ours ran out of memory with; a search that ended
    before it had found such a one says nothing.
    """
    found = []
    for other in (result for results in groups.values() for result in results):
        row = other.row
        ours = next((p for p in groups[row.case.group] if p.row.case.arm in ("ours", "flax-ours")), None)
        if ours is None or row.is_ours:
            continue
        mine = ours.row

        def line(what: str, its: str, of_ours: str, other: Placed = other, ours: Placed = ours) -> str:
            head = f"| {other.row.case.title} | {other.row.case.arm} | {what}"
            return f"{head} | {other.link(its)} | {ours.link(of_ours)} |"

        if row.step and mine.step is None:
            found.append(line("ms", f"{row.step.median:.1f}", mine.note))
        if row.step and mine.step and row.step.median < mine.step.median:
            found.append(line("ms", f"{row.step.median:.1f}", f"{mine.step.median:.1f}"))
        if row.step and mine.step and (row.peak_gb or 0) < (mine.peak_gb or 0):
            found.append(line("peak GB", f"{row.peak_gb:.2f}", f"{mine.peak_gb:.2f}"))
        if row.fits and mine.fails and row.fits >= mine.fails:
            found.append(line("longest context", f"{row.fits:,}", f"{mine.fits or 0:,}"))
    return found


def lost_section(groups: Groups) -> str:
    """Where another arm is ahead of ours, on the page."""
    found = lost(groups)
    head = "## Where another arm is ahead of ours\n\n"
    return head + (LOST_TABLE + "\n".join(found) if found else "Nowhere.") + "\n\n"


def behind(path: Path) -> str:
    """What the first page tells of a file of results: where another arm is ahead of ours."""
    rows = placed(load(path, Result.from_json), f"{path.parent.name}/models.md")
    found = lost(grouped(rows))
    head = "### Whole models: where another arm is ahead of ours\n\n" + LOST_TABLE
    return head + "\n".join(found) + "\n" if found else ""

"""A page of rows in Markdown: where they are from, plots and tables, aims, and where a peer is faster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks import sources
from benchmarks.aims import held
from benchmarks.groups import GROUPS
from benchmarks.placed import Placed, placed, with_legend
from benchmarks.rows import Run, number
from benchmarks.verdicts import NEARLY, Measured, Verdict, apart, compared

TITLES = {**GROUPS, "jax": "ops on JAX beside XLA's own formulas, optax and tokamax"}

FAMILIES = {
    "norms": ("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm", "group_norm"),
    "position": ("rope", "rope_at_positions", "mrope", "qk_norm_rope"),
    "gates": ("swiglu", "geglu", "relu_squared", "softmax", "sparsemax"),
    "losses": ("cross_entropy", "logprobs"),
    "linear_losses": ("linear_cross_entropy", "linear_logprobs"),
    "divergences": ("kl_div", "forward kl", "jsd", "tvd", "linear_jsd"),
    "tables": ("embedding", "int2_matmul"),
}
"""The parts of a page that has ops of all kinds: those of `benchmarks.jax_side.entries`, which needs JAX."""

HEAD = """# {title}

Device: {device}. Rows: [{rows}](../../../benchmarks/{rows}).

Times are microseconds, medians (20th to 80th percentile): on the device, with operands that are not in the cache, and
of eager calls by the wall clock. A share is the ceiling's time over the op's: of a copy of the least bytes, or of the
op's matrix products, in the same run. It can be above 1: what is copied is 1 GB, and a kernel that reads more than it
writes, or whose last lines stay in the cache, can be faster than that copy. The error is the largest relative one of
outputs and gradients against float64, on a few tokens. "ours: ..." is a variant of ours, not the default. "A mean" is
all that JAX's profiler recorded. Of products there is no share by the wall clock: the GPU's clock is another one then.

"""

TABLE = """| op | implementation | pass | device | share | wall | share | error | peak MB | clock, power, heat |
|---|---|---|---|---|---|---|---|---|---|
"""

AIMED = """| op | pass | aim | reached | |
|---|---|---|---|---|
"""

SLOWER = """| op | pass | ours | peer | its time | |
|---|---|---|---|---|---|
"""


def line_of(found: Placed) -> str:
    """One line of a table."""
    row = found.row
    place = f'<a id="{row.anchor}"></a>{row.entry}'
    if row.device_us is None:
        return f"| {place} | {row.provider} | | {row.note} | | | | {number(row.error, '.1e')} | | |"
    assert row.wall_us is not None
    clock = (
        ""
        if row.clock_mhz is None
        else f"{row.clock_mhz:.0f} MHz, {row.power_w:.0f} W, {row.temperature_c:.0f} °C"
    )
    return (
        f"| {place} | {row.provider} | {row.which} "
        f"| {row.device_us.median:.1f}{found.marks} ({row.device_us.range}) "
        f"| {number(row.device_share, '.2f')} | {row.wall_us.median:.1f} | {number(row.wall_share, '.2f')} "
        f"| {number(row.error, '.1e')} | {number(row.peak_mb, '.0f')} | {clock} |"
    )


def aimed_line(found: Verdict) -> str:
    """One line of the table of aims."""
    return f"| {found.aim.entry} | {found.aim.which} | {found.aim.text} | {found.reached} | {found.verdict} |"


def lost(rows: Iterable[Placed]) -> list[str]:
    """Where a peer was faster on the device, told apart or not."""
    found = []
    for mine, other in compared(rows):
        a, b = mine.row.device_us, other.row.device_us
        if b.median < a.median:
            said = ", ".join(filter(None, ("" if apart(a, b) else NEARLY, mine.beside(other))))
            found.append(
                f"| {mine.row.entry} | {mine.row.which} | {mine.link(f'{a.median:.1f}')} | {other.row.provider} "
                f"| {other.link(f'{b.median:.1f}')} | {said} |"
            )
    return found


def parts_of(stem: str, rows: Sequence[Placed]) -> dict[str, list[Placed]]:
    """The rows of each plot, by what the plot's file is called."""
    found: dict[str, list[Placed]] = {}
    for placed_row in rows:
        op = sources.op(placed_row.row)
        family = next((name for name, ops in FAMILIES.items() if op in ops), "")
        name = f"{stem}-{family}" if family and stem not in GROUPS else stem
        found.setdefault(name, []).append(placed_row)
    order = [f"{stem}-{family}" for family in FAMILIES]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else -1))


def page_of(path: Path, runs: Sequence[Run], peaks: Iterable[Placed]) -> str:
    """A page in Markdown of one file of rows; `peaks` are those of the device."""
    rows = placed(runs, "")
    title = TITLES.get(path.stem, path.stem)
    parts = [
        HEAD.format(
            title=title[0].upper() + title[1:], device=runs[-1].device, rows=path.relative_to(path.parents[2])
        )
    ]
    parts += [run.about for run in runs]
    if twice := [r.row.repeats for r in rows if r.row.repeats is not None]:
        parts.append(f"\nA second call of ours gave the same bits in {sum(twice)} of {len(twice)} cases.\n")
    sections = parts_of(path.stem, rows)
    for name, those in sections.items():
        heading = name.removeprefix(f"{path.stem}-")
        parts.append(f"\n## {heading[0].upper()}{heading[1:]}\n" if len(sections) > 1 else "")
        if any(r.row.device_share is not None for r in those):
            parts.append(f"\n![shares of the ceiling]({name}.svg)\n")
        parts.append(f"\n{TABLE}" + "\n".join(map(line_of, those)) + "\n")
    parts += _verdicts(rows, peaks)
    slower = lost(rows)
    parts.append(
        f"\n## Where a peer is faster on the device\n\n{SLOWER}" + "\n".join(slower) + "\n"
        if slower
        else "\nNo peer was faster on the device.\n"
    )
    return with_legend("".join(parts))


def _verdicts(rows: Sequence[Placed], peaks: Iterable[Placed]) -> Iterator[str]:
    here = {r.row.entry for r in rows}
    found = list(Measured(rows, peaks, [aim for aim in held() if aim.entry in here]).verdicts())
    if found:
        yield f"\n## What is aimed at\n\n{AIMED}" + "\n".join(map(aimed_line, found)) + "\n"

"""The first page of the measurements: per device, the pages, the aims, and where a peer is faster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from benchmarks.aims import REJECTED, held
from benchmarks.missed import counted, tables
from benchmarks.pages import SLOWER, lost
from benchmarks.placed import Placed, with_legend
from benchmarks.rows import EARLIER, Run
from benchmarks.verdicts import NEARLY, Measured, Verdict, compared, counts

HEAD = """# Measurements

Written by `python -m benchmarks report` from the rows in `benchmarks/results`; `python -m benchmarks all` measures them
anew. How: [benchmarks/README.md](../../benchmarks/README.md). Each figure is a link to its row.

An aim beside torch.compile allows the 3 % that it names. "No slower than XLA's best formula" allows nothing: ours is
compared with the fastest of XLA's formulas that were measured, by medians; both spreads (20th to 80th percentile) stand
beside. "Within two standard errors" says that a figure on the device differs from its aim, or a median from a peer's,
by less than two standard errors of these medians. A ceiling's own error counts where its row keeps it, from 2026-11-30
on; and runs of one op can differ by 3 % ([how](../../benchmarks/README.md)).

"Beyond the ceiling" are aims beside a peer that would be missed even if ours took no longer than its ceiling: the copy
of its least bytes, or its matrix products. "Of products computed twice" says that ours repeats some of them by design,
to save memory: that ceiling is not the hardware's. What could be reached stands beside. The bound is soft:
a kernel that reads more than it writes can pass a copy by some percent (a share above 1), and where ours or the peer
did there is none.
"Why" is what experiments found, each told once for all the lines that it is of;
it is empty where none found anything.
"""

Page = tuple[str, str]
"""A link, and what is on it."""


def given_up() -> str:
    """Aims that were tried and rejected, with a link to what was found."""
    lines = (
        f"| {aim.entry} | {aim.which} | {aim.text} | [rejected](../../{aim.notes}) |" for aim in REJECTED
    )
    return (
        "\n## Aims that were given up\n\n| op | pass | aim | why |\n|---|---|---|---|\n"
        + "\n".join(lines)
        + "\n"
    )


def section(
    device: str,
    pages: Iterable[Page],
    runs: Sequence[Run],
    picture: str,
    rows: Sequence[Placed],
    peaks: Iterable[Placed],
    behind: Iterable[str] = (),
) -> str:
    """The part about one device; `behind` are sections at its end."""
    is_earlier = not any(run.source for run in runs)
    parts = [
        f"\n## {device}{f' ({EARLIER})' if is_earlier else ''}\n\n",
        "".join(f"- [{text}]({link})\n" for link, text in pages),
    ]
    if picture:
        parts.append(f"\n![shares of the ceiling]({picture})\n")
    if gone := absent_of(runs, rows):
        parts.append("\nAbsent: " + "; ".join(f"{name} ({reason})" for name, reason in gone.items()) + ".\n")
    parts.append(_aims_of_then(rows, peaks) if is_earlier else _aims(rows, peaks))
    parts.append(_slower(rows))
    parts += [f"\n{text}" for text in behind if text]
    return with_legend("".join(parts))


def absent_of(runs: Iterable[Run], rows: Iterable[Placed]) -> dict[str, str]:
    """Providers of which there is no time at all, as the newest run says why."""
    found: dict[str, str] = {}
    for run in sorted(runs, key=lambda run: run.date):
        found = {**found, **run.absent}
    timed = {r.row.provider.split(":")[0] for r in rows if r.row.wall_us is not None}
    return {name: reason for name, reason in found.items() if name not in timed}


def _aims(rows: Sequence[Placed], peaks: Iterable[Placed]) -> str:
    found = list(Measured(rows, peaks, held()).verdicts())
    n = counts(found)
    nearly = sum(v.met is True and v.remark == NEARLY for v in found)
    near = f" (of them {nearly} {NEARLY})" if nearly else ""
    text = (
        f"\n### Aims: {len(found) + len(REJECTED)}\n\n{n['met']} met{near}, {counted(found)}, "
        f"{n['not measured']} not measured, {len(REJECTED)} given up.\n"
    )
    text += _by_kind(found)
    text += tables(found)
    if unknown := [
        f"| {v.aim.entry} | {v.aim.which} | {v.aim.text} | {v.reached} |" for v in found if v.met is None
    ]:
        text += (
            "\n<details><summary>Not measured</summary>\n\n| op | pass | aim | why |\n|---|---|---|---|\n"
            + "\n".join(unknown)
            + "\n\n</details>\n"
        )
    return text


def _by_kind(found: Sequence[Verdict]) -> str:
    """How many of each kind are met: most aims are that nobody be ahead."""
    measured = [v for v in found if v.met is not None]
    of = Counter(v.aim.kind for v in measured)
    met = Counter(v.aim.kind for v in measured if v.met)
    told = "; ".join(f"{kind}: {met[kind]} of {n}" for kind, n in of.items())
    return f"\nMet, by kind: {told}.\n" if measured else ""


def _aims_of_then(rows: Sequence[Placed], peaks: Iterable[Placed]) -> str:
    """Of an earlier harness, without the many aims that it had no rows for."""
    found = [v for v in Measured(rows, peaks, held()).verdicts() if v.met is not None]
    n = counts(found)
    text = f"\n### Aims that it measured: {len(found)}\n\n{n['met']} met, {counted(found)}.\n"
    return text + tables(found, reasons=False)


def _slower(rows: Sequence[Placed]) -> str:
    slower, comparisons = lost(rows), len(list(compared(rows)))
    if not comparisons:
        return ""
    table = f"\n{SLOWER}" + "\n".join(slower) + "\n" if slower else ""
    return f"\n### Where a peer is faster on the device: {len(slower)} of {comparisons}\n{table}"

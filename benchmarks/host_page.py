"""What the report makes of the rows of `python -m benchmarks host`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from benchmarks.aims import HOST, HOST_AHEAD, Aim
from benchmarks.placed import Placed, placed, with_legend
from benchmarks.providers import FUSED, LIGER
from benchmarks.rows import BACKWARD, FORWARD, Row, load, number, rows_of

EMPTY = "empty autograd.Function"
LAUNCH = "launch"
AIMS = {FORWARD: 12.0, BACKWARD: 15.0}
"""Microseconds beyond the empty function."""
TIMES_LESS = 3.0
"""How many times less than liger-kernel's the host's time is to be."""
ON_AUTOGRADS_THREAD = "on autograd's thread, whose waking is in it"
NO_MORE = "no more than an empty function"

TOKENS, HIDDEN = 8, 256
"""Of the operands: so few that the device is never behind."""


def on_autograds_thread(found: Placed) -> bool:
    """Whether it is of a backward pass that a thread of autograd's engine ran, and not the one that calls."""
    return found.row.which == BACKWARD and "backward passes" not in found.run.hardware


def beyond(rows: Iterable[Row]) -> dict[tuple[str, str, str], float]:
    """Microseconds beyond the empty function, by op, pass and provider."""
    timed = {(r.entry, r.which, r.provider): r.wall_us.median for r in rows if r.wall_us is not None}
    return {
        (entry, which, provider): us - timed[entry, which, EMPTY]
        for (entry, which, provider), us in timed.items()
        if (entry, which, EMPTY) in timed and provider != EMPTY
    }


def aims_of(entry: str, which: str, peers: Iterable[str]) -> Iterator[Aim]:
    """Of a pass of an op: microseconds, and beside liger-kernel where it is a peer."""
    yield Aim(entry, which, HOST, AIMS[which])
    if LIGER in peers:
        yield Aim(entry, which, HOST_AHEAD, TIMES_LESS, LIGER)


def times_less(mine: float, theirs: float) -> float:
    """By microseconds beyond the empty function; infinitely many of what costs no more than that one."""
    return theirs / mine if mine > 0 else math.inf


def told(aim: Aim, reached: float) -> str:
    """What was reached of an aim on the host."""
    return NO_MORE if reached == math.inf else aim.figure(reached, ".1f")


def table(rows: Iterable[Row], marks: Callable[[Row], str] = lambda row: "") -> Iterator[str]:
    """Lines in Markdown: what was measured, with the marks of its run, beside what is aimed at."""
    rows = list(rows)
    cost = beyond(rows)
    timed = {(r.entry, r.which, r.provider): r for r in rows}
    yield f"| op | pass | {EMPTY} | ours | beyond | aim | {LIGER} beyond | times ours | {FUSED} beyond | |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for (entry, which, provider), mine in cost.items():
        if provider != "ours":
            continue
        nothing, row = timed[entry, which, EMPTY].wall_us, timed[entry, which, "ours"]
        whole = row.wall_us
        assert nothing is not None and whole is not None
        theirs, torchs = (cost.get((entry, which, p)) for p in (LIGER, FUSED))
        figures, missed = {HOST_AHEAD: ""}, list[str]()
        for aim in aims_of(entry, which, () if theirs is None else (LIGER,)):
            reached = mine if theirs is None or aim.kind == HOST else times_less(mine, theirs)
            figures[aim.kind] = told(aim, reached)
            if not aim.is_met_by(reached):
                missed.append(f"{aim.value:.0f} {'us' if aim.kind == HOST else 'times'}")
        yield (
            f'| <a id="{row.anchor}"></a>{entry} | {which} | {nothing.median:.1f} '
            f"| {whole.median:.1f}{marks(row)} ({whole.low:.1f} to {whole.high:.1f}) "
            f"| {figures[HOST]} | {AIMS[which]:.0f} | {number(theirs, '.1f')} "
            f"| {figures[HOST_AHEAD]} | {number(torchs, '.1f')} "
            f"| {'missed: ' + ', '.join(missed) if missed else ''} |"
        )
    for row in rows:
        if row.entry == LAUNCH and row.wall_us is not None:
            by = f"A launch by torch (`zero_` of {HIDDEN} numbers)"
            yield f'\n<a id="{row.anchor}"></a>{by}: {row.wall_us.median:.1f} us.'
        elif row.note:
            yield f"\n{row.entry}, {row.provider}: {row.note}"


def page(path: Path) -> str:
    """The report's page."""
    runs = load(path)
    marks = {id(found.row): found.marks for found in placed(runs, "")}
    return with_legend(
        "# Host cost of an eager call\n\nMicroseconds by the wall clock, medians (20th to 80th percentile), of calls "
        f"on {TOKENS} tokens, and beyond an empty autograd.Function of as many inputs and outputs. How: "
        f"[benchmarks/host.py](../../../benchmarks/host.py). Runs whose line does not say where backward passes ran "
        "had them on a thread of autograd's engine, and the time in which that wakes is in their figures, ours and the "
        f"empty function's.\n\nDevice: {runs[-1].device}.\n\n"
        + "".join(run.about for run in runs)
        + "\n"
        + "\n".join(table(rows_of(runs), lambda row: marks[id(row)]))
        + "\n"
    )


def behind(path: Path) -> str:
    """What the first page tells of a file of results: where a peer costs the host less."""
    runs = load(path)
    cost = beyond(rows_of(runs))
    rows = {
        (p.row.entry, p.row.which): p for p in placed(runs, f"{path.parent.name}/host.md") if p.row.is_ours
    }
    found = []
    for (entry, which, peer), us in cost.items():
        mine = cost.get((entry, which, "ours"))
        if mine is not None and us < mine:
            figure = rows[entry, which].link(f"{mine:.1f}")
            found.append(f"| {entry} | {which} | {figure} | {peer} | {us:.1f} |")
    head = (
        "### Where a peer costs the host less, beyond an empty function\n\n"
        "| op | pass | ours, us | peer | its us |\n|---|---|---|---|---|\n"
    )
    return head + "\n".join(found) + "\n" if found else ""

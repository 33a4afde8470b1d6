"""What `python -m benchmarks memory` keeps, and what the report makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.placed import Placed, placed, with_legend
from benchmarks.providers import provider_of
from benchmarks.rows import load, number, slug


@dataclasses.dataclass(frozen=True)
class Peak:
    """Of one implementation of one op.

    Attributes:
        entry: op and size.
        provider: the implementation.
        peak_mb: allocated at most, beyond the operands.
        reserved_mb: what torch's allocator holds of the driver's at most, likewise.
        planned_mb: the peak on shapes alone; None of what cannot run on them.
        note: why it was not measured.
    """

    entry: str
    provider: str
    peak_mb: float | None = None
    reserved_mb: float | None = None
    planned_mb: float | None = None
    note: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What is measured anew."""
        return self.entry, self.provider

    @property
    def is_ours(self) -> bool:
        """Whether it is this package's, or a variant of it."""
        return provider_of(self.provider) == "ours"

    @property
    def anchor(self) -> str:
        """Its place on a page."""
        return slug(f"{self.entry} {self.provider}")

    @property
    def failed(self) -> bool:
        """Whether its process broke off."""
        return self.note.startswith("failed")


def read_peak(values: dict[str, Any]) -> Peak:
    """A row of what JSON holds."""
    return Peak(**values)


def peaks(path: Path) -> list[Placed]:
    """What a file holds of it, as its page shows it."""
    return placed(load(path, read_peak), "memory.md")


LESS = 0.01
"""A peer takes less memory where it saves at least this share of ours."""


def leaner(rows: Iterable[Placed]) -> list[str]:
    """Lines of a table: where a peer allocates less than ours, by `LESS` or more."""
    measured = [p for p in rows if p.row.peak_mb is not None]
    ours = {p.row.entry: p for p in measured if p.row.provider == "ours"}
    found = []
    for peer in measured:
        mine = ours.get(peer.row.entry)
        if mine and not peer.row.is_ours and peer.row.peak_mb <= (1 - LESS) * mine.row.peak_mb:
            figures = [p.link(f"{p.row.peak_mb:.0f}") for p in (mine, peer)]
            found.append(f"| {peer.row.entry} | {figures[0]} | {peer.row.provider} | {figures[1]} |")
    return found


LEANER = f"Where a peer takes less memory, by {LESS:.0%} or more"
LEANER_TABLE = """| op | ours | peer | its peak, MB |
|---|---|---|---|
"""


def behind(path: Path) -> str:
    """What the first page tells of a file of results: where a peer allocates less."""
    found = leaner(placed(load(path, read_peak), f"{path.parent.name}/memory.md"))
    return f"### {LEANER}\n\n{LEANER_TABLE}" + "\n".join(found) + "\n" if found else ""


HEAD = """MB beyond the operands of one step, outputs and gradients included: allocated by tensors, reserved by torch's
allocator, and planned without a GPU. Each implementation ran in a process of its own.
"""


def page(path: Path) -> str:
    """The report's page."""
    runs = load(path, read_peak)
    lines = ["# Peak memory", "", f"Device: {runs[-1].device}. {HEAD}"]
    lines += [run.about.rstrip() for run in runs]
    lines += [
        "",
        "| op | implementation | peak | reserved | planned | peak over planned | |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = placed(runs, "")
    for found in rows:
        row = found.row
        ratio = f"{row.peak_mb / row.planned_mb:.2f}" if row.peak_mb and row.planned_mb else ""
        peak = "" if row.peak_mb is None else f"{row.peak_mb:.0f}{found.marks}"
        cells = " | ".join((peak, number(row.reserved_mb, ".0f"), number(row.planned_mb, ".0f")))
        place = f'<a id="{row.anchor}"></a>{row.entry}'
        lines.append(f"| {place} | {row.provider} | {cells} | {ratio} | {row.note} |")
    if less := leaner(rows):
        lines += ["", f"## {LEANER}", "", LEANER_TABLE + "\n".join(less)]
    return with_legend("\n".join(lines) + "\n")

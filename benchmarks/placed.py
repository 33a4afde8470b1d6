"""Rows with the page that shows them: figures as links, marked where they are to be doubted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from benchmarks.rows import DRIFT, Run

OLDER, UNTOLD, DRIFTED = "†", "§", "‡"
LEGENDS = {
    OLDER: "measured with code of ours that has changed since.",
    UNTOLD: "measured before runs told the code that they are of: it may have changed since.",
    DRIFTED: f"the copy drifted by more than {DRIFT:.0%} during the run, or was not measured again because the run was "
    "cut short: its figures are uncertain, but for shares of products, which take turns with the op.",
}
"""What each mark means."""


@dataclasses.dataclass(frozen=True)
class Placed:
    """A row with the run that it is of, and the page that shows it.

    Attributes:
        row: a `Row`, or another dataclass with `provider`, `anchor` and `is_ours`.
        run: its run.
        page: the page, from where it is linked to.
    """

    row: Any
    run: Run
    page: str

    @property
    def marks(self) -> str:
        """What a figure of it is marked with."""
        run = self.run
        marks = {
            OLDER: run.is_older(self.row),
            UNTOLD: run.is_untold(self.row),
            DRIFTED: run.drifted or run.was_cut_short,
        }
        return "".join(mark for mark, is_so in marks.items() if is_so)

    def beside(self, other: Placed) -> str:
        """What there is to say of a comparison with another row: ''; or that the two were not measured together."""
        return "" if self.run is other.run else "of another run"

    def link(self, text: str) -> str:
        """A figure of it, with a link to it and its marks."""
        return f"[{text}]({self.page}#{self.row.anchor}){self.marks}"


def placed(runs: Iterable[Run], page: str) -> list[Placed]:
    """The rows of these runs."""
    return [Placed(row, run, page) for run in runs for row in run.rows]


def with_legend(text: str) -> str:
    """A page, and what the marks that are on it mean."""
    legend = " ".join(f"{mark} {meaning}" for mark, meaning in LEGENDS.items() if mark in text)
    return f"{text}\n{legend}\n" if legend else text

"""Rows with the page that shows them: figures as links, marked where they are to be doubted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from benchmarks.rows import DRIFT, Run

OLDER, DRIFTED = "†", "‡"
LEGEND = (
    f"{OLDER} measured with code of ours that has changed since, or is not known. "
    f"{DRIFTED} the rate of the copy changed by more than {DRIFT:.0%} during the run: its figures are uncertain."
)


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
        return OLDER * self.run.is_older(self.row) + DRIFTED * self.run.drifted

    def link(self, text: str) -> str:
        """A figure of it, with a link to it and its marks."""
        return f"[{text}]({self.page}#{self.row.anchor}){self.marks}"


def placed(runs: Iterable[Run], page: str) -> list[Placed]:
    """The rows of these runs."""
    return [Placed(row, run, page) for run in runs for row in run.rows]


def with_legend(text: str) -> str:
    """A page, and what its marks mean if it has any."""
    return f"{text}\n{LEGEND}\n" if OLDER in text or DRIFTED in text else text

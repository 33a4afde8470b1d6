"""The first page's tables of missed aims: plainly missed, beyond the ceiling, nearly met, each with a reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from benchmarks.bounds import BEYOND
from benchmarks.pages import AIMED, aimed_line
from benchmarks.reasons import NOTES, Reason, reason_of
from benchmarks.verdicts import NEARLY, Verdict

TABLE = """| op | pass | aim | reached | | why |
|---|---|---|---|---|---|
"""

FOLDED = {
    BEYOND: "Missed, and beyond the ceiling: what would be missed at the rate of a copy, or of its products, too",
    NEARLY: "Missed by less than two standard errors",
}
"""Tables that are folded, by how their aims are missed."""


def _missed(found: Iterable[Verdict]) -> list[Verdict]:
    return [v for v in found if v.met is False]


def counted(found: Iterable[Verdict]) -> str:
    """How many are missed, and how."""
    missed = _missed(found)
    kinds = [v.kind for v in missed]
    parts = [f"{kinds.count(kind)} {kind}" for kind in FOLDED if kind in kinds]
    return f"{len(missed)} missed" + (f" (of them {', '.join(parts)})" if parts else "")


def tables(found: Iterable[Verdict], reasons: bool = True) -> str:
    """All that is missed; `reasons` are not told of rows of older code."""
    missed = _missed(found)
    text = ""
    if plain := [v for v in missed if not v.kind]:
        text += f"\nMissed:\n\n{_table(plain, reasons)}"
    for kind, summary in FOLDED.items():
        if those := [v for v in missed if v.kind == kind]:
            text += f"\n<details><summary>{summary}: {len(those)}</summary>\n\n{_table(those, reasons)}\n</details>\n"
    return text


def _table(those: Iterable[Verdict], reasons: bool) -> str:
    if not reasons:
        return AIMED + "".join(f"{aimed_line(v)}\n" for v in those)
    return TABLE + "".join(f"{line}\n" for line in _explained(those))


def _explained(those: Iterable[Verdict]) -> Iterator[str]:
    """Lines of the same reason behind each other, of which the first one tells it."""
    groups: dict[object, list[Verdict]] = {}
    for found in those:
        groups.setdefault(reason_of(found.aim) or found, []).append(found)
    for key, group in groups.items():
        for n, found in enumerate(group):
            why = "" if not isinstance(key, Reason) else "as above" if n else told(key)
            yield f"{aimed_line(found)} {why} |"


def told(reason: Reason) -> str:
    """A reason, with a link to the experiments."""
    return f"{reason.text} ([notes](../../{NOTES}#{reason.anchor}))"

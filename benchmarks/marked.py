"""A part of the README that is written by `python -m benchmarks report`, between two marks."""

from __future__ import annotations

from collections.abc import Iterable


def marks(name: str) -> tuple[str, str]:
    """Where a part begins and ends."""
    said = "written by `python -m benchmarks report` from the rows; do not edit"
    return f"<!-- {name}: {said} -->", f"<!-- {name}: end -->"


def renewed(text: str, name: str, lines: Iterable[str]) -> str:
    """The text with a part written anew; without the marks for it, as it is."""
    begin, end = marks(name)
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        return text
    part = "\n".join(lines).strip()
    return f"{head}{begin}\n{part}\n{end}{tail}"

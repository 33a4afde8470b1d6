"""Why aims are missed: reasons, the notes that they link to, and the tables that tell them."""

from __future__ import annotations

import re
from pathlib import Path

import checkout  # noqa: F401
import pytest

from benchmarks import aims, missed, reasons
from benchmarks.aims import SHARE, Aim
from benchmarks.bounds import BEYOND
from benchmarks.reasons import REASONS, Reason
from benchmarks.rows import FORWARD
from benchmarks.verdicts import NEARLY, Verdict

ROOT = Path(__file__).parents[2]


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^##+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_reason_is_of_an_aim() -> None:
    used = {reasons.reason_of(aim) for aim in aims.held()}
    assert [reason for reason in REASONS if reason not in used] == []


def test_every_link_to_the_notes_finds_its_section() -> None:
    links = [f"{reasons.NOTES}#{reason.anchor}" for reason in REASONS]
    for link in (*links, *(rejected.notes for rejected in aims.REJECTED)):
        name, _, anchor = link.partition("#")
        assert anchor in anchors((ROOT / name).read_text()), link


def test_what_is_missed_is_told_with_its_reason_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasons, "REASONS", (Reason("op.*", (FORWARD,), (SHARE,), "so it is", "norms"),))
    found = [
        Verdict(Aim(entry, FORWARD, SHARE, 0.9, of="copy"), "80%", met, remark)
        for entry, met, remark in (
            ("op 1", False, ""),
            ("other", False, ""),
            ("op 2", False, ""),
            ("op 3", True, NEARLY),
            ("op 4", None, ""),
            ("op 5", False, f"{BEYOND} (1.50 at best)"),
            ("op 6", False, NEARLY),
        )
    ]
    assert missed.counted(found) == "5 missed (of them 1 beyond the ceiling, 1 within two standard errors)"
    plain, beyond, overlap = missed.tables(found).split("<details>")
    told = "so it is ([notes](../../benchmarks/NOTES.md#norms))"
    begin = "forward | 90% of copy | 80% | missed"
    assert plain.endswith(
        f"| op 1 | {begin} | {told} |\n| op 2 | {begin} | as above |\n| other | {begin} |  |\n\n"
    )
    assert f"| op 5 | {begin}, beyond the ceiling (1.50 at best) | {told} |" in beyond
    assert f"| op 6 | {begin}, within two standard errors | {told} |" in overlap
    of_then = missed.tables(found, reasons=False)
    assert told not in of_then and all(f"| op {n} |" in of_then for n in (1, 2, 5, 6))
    assert not re.search("op [34]", missed.tables(found) + of_then)


def test_where_nothing_is_missed_there_is_no_table() -> None:
    found = [Verdict(Aim("op", FORWARD, SHARE, 0.9, of="copy"), "95%", True)]
    assert missed.counted(found) == "0 missed" and missed.tables(found) == ""

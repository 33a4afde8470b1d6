"""The README's table of whole models, each figure a link to its table, written by `python -m benchmarks report`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.models.case import Case, Result
from benchmarks.models.report import anchor_of, grouped
from benchmarks.models.shapes import MODELS
from benchmarks.rows import RESULTS, load

SHOWN_ARMS = ("ours", "liger", "compile", "eager")


def shown(case: Case) -> bool:
    """Whether the README shows it: steps of 8192 tokens with every label, and longest contexts."""
    usual = case.valid == 1 and not case.is_flax and case.model in MODELS
    return usual and (
        case.what == "longest" or (case.what == "step" and case.tokens == case.sequence == 8192)
    )


def cell(row: Result | None, link: str) -> str:
    """Tokens per second and the peak, or the longest context."""
    if row is None:
        return ""
    if row.fits is not None:
        more = "" if row.fails else " or more"
        return f"[{row.fits:,} tokens{more}]({link})"
    if row.tokens_s is None:
        return f"[{row.note}]({link})"
    peak = "" if row.peak_gb is None else f" ({row.peak_gb:.1f} GB)"
    return f"[{row.tokens_s:,.0f}/s{peak}]({link})"


def lines(results: Path = RESULTS) -> Iterator[str]:
    """A table for each device, line by line."""
    for path in sorted(results.glob("*/models.json")):
        runs = load(path, Result.from_json)
        groups = [rows for rows in grouped(runs).values() if shown(rows[0].case)]
        if not groups:
            continue
        named = ("torch", "transformers", "liger-kernel")
        versions = ", ".join(f"{name} {runs[-1].versions.get(name, '')}" for name in named)
        yield f"{runs[-1].device}, {runs[-1].date}, {versions}; tokens per second and peak memory:"
        yield ""
        yield f"| training step | {' | '.join(SHOWN_ARMS)} |"
        yield f"|---|{'---|' * len(SHOWN_ARMS)}"
        for rows in groups:
            case = rows[0].case
            link = f"docs/benchmarks/{path.parent.name}/models.md#{anchor_of(case)}"
            by_arm = {row.case.arm: row for row in rows}
            cells = " | ".join(cell(by_arm.get(arm), link) for arm in SHOWN_ARMS)
            yield f"| {'longest context: ' if case.what == 'longest' else ''}{case.title} | {cells} |"
        yield ""

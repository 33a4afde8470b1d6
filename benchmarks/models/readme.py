"""The README's table of whole models, each figure a link to its table, written by `python -m benchmarks report`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.models.case import Case, Result
from benchmarks.models.report import grouped
from benchmarks.models.shapes import MODELS
from benchmarks.placed import Placed, placed, with_legend
from benchmarks.rows import RESULTS, days, load

SHOWN_ARMS = ("ours", "liger", "compile", "eager")


def shown(case: Case) -> bool:
    """Whether the README shows it: steps of 8192 tokens with every label, and longest contexts."""
    usual = case.valid == 1 and not case.is_flax and case.model in MODELS
    return usual and (
        case.what == "longest" or (case.what == "step" and case.tokens == case.sequence == 8192)
    )


def is_finished(result: Result) -> bool:
    """Whether it has a figure to compare: of a search for the longest context, if that found the end."""
    return result.tokens_s is not None or (result.fits is not None and not result.is_at_least)


def has_pair(results: Iterable[Placed]) -> bool:
    """Whether ours stands beside another arm that the README shows, both finished, and no search was cut short."""
    seen = [p.row for p in results if p.row.case.arm in SHOWN_ARMS]
    finished = {row.case.arm for row in seen if is_finished(row)}
    cut_short = any(row.is_at_least for row in seen)
    return "ours" in finished and len(finished) > 1 and not cut_short


def cell(result: Placed | None) -> str:
    """Tokens per second and the peak, or the longest context."""
    if result is None:
        return ""
    row = result.row
    if row.fits is not None:
        return result.link(f"{row.fits:,} tokens")
    if row.tokens_s is None:
        return result.link(row.note)
    peak = "" if row.peak_gb is None else f" ({row.peak_gb:.1f} GB)"
    return result.link(f"{row.tokens_s:,.0f}/s{peak}")


def lines(results: Path = RESULTS) -> Iterator[str]:
    """A table for each device, line by line, and what its marks mean."""
    yield from with_legend("\n".join(_tables(results))).splitlines()


def _tables(results: Path) -> Iterator[str]:
    for path in sorted(results.glob("*/models.json")):
        runs = load(path, Result.from_json)
        page = f"docs/benchmarks/{path.parent.name}/models.md"
        every = grouped(placed(runs, page)).values()
        groups = [those for those in every if shown(those[0].row.case) and has_pair(those)]
        if not groups:
            continue
        named = ("torch", "transformers", "liger-kernel")
        versions = ", ".join(f"{name} {runs[-1].versions.get(name, '')}" for name in named)
        yield f"{runs[-1].device}, {days(runs)}, {versions}; tokens per second and peak memory:"
        yield ""
        yield f"| training step | {' | '.join(SHOWN_ARMS)} |"
        yield f"|---|{'---|' * len(SHOWN_ARMS)}"
        for those in groups:
            case = those[0].row.case
            by_arm = {result.row.case.arm: result for result in those}
            cells = " | ".join(cell(by_arm.get(arm)) for arm in SHOWN_ARMS)
            yield f"| {'longest context: ' if case.what == 'longest' else ''}{case.title} | {cells} |"
        yield ""
        yield (
            f"Arms of a row may be of different days and machines, which differ by 3 to 4 %: [all cases]({page}) has "
            "the rate of a matrix product beside each. `compile`, torch.compile of `eager`, is slower than it for its "
            "attention, which gets a mask where transformers is traced."
        )
        yield ""

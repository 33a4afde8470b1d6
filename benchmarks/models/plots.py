"""Plots of the results of whole models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.models.case import ARMS, Result
from benchmarks.plots import save, settle

Groups = Sequence[Sequence[Result]]
"""Results that differ in the arm alone."""

PLOTS = {"step": "models-steps", "longest": "models-longest", "curve": "models-curves"}
"""What a plot's file is called."""

COLOURS = dict(zip(ARMS, ("C7", "C1", "C2", "C0", "C9", "C7", "C0"), strict=True))
"""An arm's colour is the same in every plot."""


def plots(groups: Iterable[Sequence[Result]], folder: Path) -> None:
    """Draw what the page shows into the folder."""
    found = list(groups)
    settle()
    for what, draw in (("step", steps), ("longest", longest), ("curve", curves)):
        if wanted := [rows for rows in found if rows[0].case.what == what]:
            save(draw(wanted), folder / PLOTS[what])


def _digits(value: float) -> str:
    """Of a large number all before the point, of a small one four."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _bars(axes: Any, groups: Groups, value: Callable[[Result], float | None], label: str) -> None:
    """A bar for each arm that a group has, one below the other."""
    height = 0.85 / max(map(len, groups))
    for place, rows in enumerate(groups):
        for i, row in enumerate(sorted(rows, key=lambda row: ARMS.index(row.case.arm))):
            arm = row.case.arm
            found, at = value(row), place + (i - (len(rows) - 1) / 2) * height
            look = {"facecolor": "none", "hatch": "////"} if row.is_at_least else {"color": COLOURS[arm]}
            axes.barh(at, found or 0.0, height, edgecolor=COLOURS[arm], **look)
            if found is None:
                text = row.note[:40]
            elif row.is_at_least:
                text = f"at least {_digits(found)} →"
            else:
                text = _digits(found)
            axes.text(found or 0.0, at, f" {text}", fontsize=6, va="center")
    for arm in sorted({row.case.arm for rows in groups for row in rows}, key=ARMS.index):
        axes.barh(0, 0, color=COLOURS[arm], label=arm)
    titles = [rows[0].case.title for rows in groups]
    axes.set_yticks(range(len(titles)), titles, fontsize=8)
    axes.set_ylim(len(titles) - 0.5, -0.5)
    axes.set_xlabel(label, fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.2)


def _finish(figure: Any, axes: Any, at_least: bool) -> None:
    """One legend, above the bars."""
    from matplotlib.patches import Patch

    handles, labels = axes.get_legend_handles_labels()
    if at_least:
        handles.append(Patch(facecolor="none", edgecolor="black", hatch="////"))
        labels.append("at least: the search ended for lack of time")
    figure.legend(handles, labels, fontsize=8, loc="outside upper center", ncols=len(labels), frameon=False)


def _figure(groups: Groups, columns: int) -> Any:
    from matplotlib import pyplot

    most = max(map(len, groups))
    size = (2.5 + 5.5 * columns, 1.3 + 0.15 * (most + 0.5) * len(groups))
    return pyplot.subplots(1, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")


def steps(groups: Groups) -> Any:
    """Tokens per second and peak memory as bars."""
    figure, ((left, right),) = _figure(groups, 2)
    _bars(left, groups, lambda row: row.tokens_s, "tokens per second")
    _bars(right, groups, lambda row: None if row.step is None else row.peak_gb, "peak memory, 1e9 bytes")
    _finish(figure, left, False)
    return figure


def longest(groups: Groups) -> Any:
    """Tokens as bars; hollow where a longer one may fit."""
    figure, ((axes,),) = _figure(groups, 1)
    _bars(axes, groups, lambda row: row.fits, "longest context of which a step was made, tokens")
    _finish(figure, axes, any(row.is_at_least for rows in groups for row in rows))
    return figure


def curves(groups: Groups) -> Any:
    """Losses over each other, and their difference from the plain arm's below."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2,
        len(groups),
        figsize=(1 + 5 * len(groups), 6),
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    for column, rows in enumerate(groups):
        above, below = axes[0][column], axes[1][column]
        base = next((row for row in rows if row.case.arm in ("eager", "flax-plain")), rows[0])
        for i, row in enumerate(rows):
            if not row.losses:
                continue
            # Wide below and narrow above, so that curves which cover each other are all seen.
            width = 1.0 + 1.2 * (len(rows) - 1 - i)
            above.plot(row.losses, color=COLOURS[row.case.arm], linewidth=width, label=row.case.arm)
            if row is not base and base.losses:
                apart = [a - b for a, b in zip(row.losses, base.losses, strict=False)]
                below.plot(apart, color=COLOURS[row.case.arm], linewidth=1, label=row.case.arm)
        above.set_title(rows[0].case.title, fontsize=8)
        above.set_ylabel("loss")
        above.legend(fontsize=7)
        below.set_ylabel(f"minus {base.case.arm}'s")
        below.set_xlabel("step")
    return figure

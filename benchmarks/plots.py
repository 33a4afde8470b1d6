"""Plots of rows, in PNG and SVG."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.providers import provider_of
from benchmarks.rows import PASSES, Row

STYLES = {
    "ours": ("#1b6ca8", "o"),
    "liger-kernel": ("#d9822b", "s"),
    "torch.compile": ("#4d4d4d", "D"),
    "torch eager": ("#a6a6a6", "v"),
    "torch fused": ("#7a7a7a", "^"),
    "quack": ("#7b4fa3", "P"),
    "cut-cross-entropy": ("#2f8f5b", "X"),
    "trl": ("#b59b3a", "p"),
    "XLA": ("#c0392b", "D"),
    "optax": ("#e377c2", "^"),
    "tokamax": ("#17a2a2", "s"),
}
"""Colour and marker of a provider; its variants have the colour and a hollow marker of their own."""

HOLLOW = ("o", "D", "s", "^", "v")
LABEL = 60
"""Letters of a line of an op's name."""


def settle() -> None:
    """Let the same rows give the same files, without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "benchmarks"
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")  # the date in an SVG


def save(figure: Any, target: Path) -> None:
    """As PNG and SVG."""
    from matplotlib import pyplot

    figure.savefig(target.with_suffix(".png"), dpi=120, metadata={"Software": None})
    figure.savefig(target.with_suffix(".svg"))
    pyplot.close(figure)


def style(provider: str, variants: Sequence[str]) -> dict[str, Any]:
    """How the points of a provider, or of one of the variants that are shown, look."""
    colour, marker = STYLES[provider_of(provider)]
    if provider not in variants:
        return {"color": colour, "marker": marker, "markersize": 6.5, "markeredgecolor": "white"}
    of_same = [name for name in variants if provider_of(name) == provider_of(provider)]
    hollow = HOLLOW[of_same.index(provider) % len(HOLLOW)]
    return {"color": colour, "marker": hollow, "markersize": 6.5, "markerfacecolor": "none"}


def shares(rows: Sequence[Row], target: Path) -> bool:
    """Shares of the ceiling on the device, as points; whether there is any.

    A line for each op and a column for each pass, or a line for each op and pass where few ops have several.
    """
    rows = [r for r in rows if r.device_share is not None]
    if not rows:
        return False
    settle()
    from matplotlib import pyplot

    entries = list(dict.fromkeys(r.entry for r in rows))
    passes: list[str] = [which for which in PASSES if any(r.which == which for r in rows)]
    by_column = len(passes) == 1 or len({(r.entry, r.which) for r in rows}) > 1.5 * len(entries)
    columns = [[r for r in rows if r.which == which] for which in passes] if by_column else [rows]
    label = _entry if by_column else _entry_and_pass
    lines = list(dict.fromkeys(map(label, rows)))
    names = sorted({r.provider for r in rows}, key=lambda name: (list(STYLES).index(provider_of(name)), name))
    figure, all_axes = pyplot.subplots(
        1,
        len(columns),
        figsize=(5.0 + 3.6 * len(columns), 1.2 + 0.24 * -(-len(names) // 5) + 0.4 * len(lines)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, column, title in zip(all_axes[0], columns, passes if by_column else [""], strict=True):
        axes.set_title(title, fontsize=9)
        _points(axes, column, names, lines, label)
    all_axes[0][0].set_xlim(-0.02, max(1.05, 1.03 * max(r.device_share or 0.0 for r in rows)))
    labels = ["\n".join(textwrap.wrap(line, LABEL)) for line in lines]
    all_axes[0][0].set_yticks(range(len(lines)), labels, fontsize=8)
    all_axes[0][0].set_ylim(len(lines) - 0.4, -0.6)
    handles, labels = all_axes[0][0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], fontsize=8, loc="outside upper center", ncols=5, frameon=False)
    save(figure, target)
    return True


def _entry(row: Row) -> str:
    return row.entry.removesuffix(", JAX")


def _entry_and_pass(row: Row) -> str:
    return f"{_entry(row)}; {row.which}"


def _points(
    axes: Any, rows: Sequence[Row], names: Sequence[str], lines: Sequence[str], label: Callable[[Row], str]
) -> None:
    """One for each row, a little below each other in the order of the names, so that equal ones are seen."""
    variants = [name for name in names if ":" in name]
    for i, name in reversed(list(enumerate(names))):  # ours lies on top
        found = [r for r in rows if r.provider == name]
        lower = 0.5 * (i / max(1, len(names) - 1) - 0.5)
        axes.plot(
            [r.device_share for r in found],
            [lines.index(label(r)) + lower for r in found],
            linestyle="none",
            markeredgewidth=1.3 if name in variants else 0.6,
            label=name,
            **style(name, variants),
        )
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.grid(axis="x", linewidth=0.4)
    for i in range(1, len(lines)):
        axes.axhline(i - 0.5, color="0.8", linewidth=0.5, zorder=0)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("share of the ceiling, on the device", fontsize=8)

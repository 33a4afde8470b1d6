"""Plots of rows, in PNG and SVG."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from benchmarks.rows import Row

COLOURS = {
    "ours": "#1b6ca8",
    "torch eager": "#bbbbbb",
    "torch.compile": "#8c8c8c",
    "torch fused": "#5b5b5b",
    "liger-kernel": "#d9822b",
    "quack": "#7b4fa3",
    "cut-cross-entropy": "#2f8f5b",
    "trl": "#c2b280",
}
"""By provider; its variants are lighter."""


def settle() -> None:
    """Let the same rows give the same files, without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "benchmarks"
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")  # the date in an SVG


def bars(rows: Iterable[Row], target: Path) -> None:
    """Shares of the ceiling on the device, as bars: one for each implementation of an op in a pass."""
    settle()
    from matplotlib import pyplot

    rows = [r for r in rows if r.device_share is not None]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row.entry}\n{row.which}", []).append(row)
    height = sum(0.13 * len(found) + 0.16 for found in groups.values())
    figure, axes = pyplot.subplots(figsize=(9, 1 + height))
    y, ticks, named = 0.0, [], set()
    for found in groups.values():
        start = y
        for row in sorted(found, key=lambda row: not row.is_ours):
            provider, _, variant = row.provider.partition(":")
            label = "" if row.provider in named else row.provider
            named.add(row.provider)
            axes.barh(
                y,
                row.device_share or 0.0,
                0.13,
                color=COLOURS.get(provider),
                alpha=0.55 if variant else 1.0,
                hatch="//" if variant else None,
                edgecolor="white",
                linewidth=0.3,
                label=label or None,
            )
            y += 0.13
        ticks.append((start + y - 0.13) / 2)
        y += 0.16
    axes.set_yticks(ticks, list(groups), fontsize=6)
    axes.set_ylim(y, -0.2)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("share of the ceiling, on the device")
    axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.35 / (1 + height)), ncols=5)
    figure.tight_layout()
    figure.savefig(target.with_suffix(".png"), dpi=120, metadata={"Software": None})
    figure.savefig(target.with_suffix(".svg"))
    pyplot.close(figure)

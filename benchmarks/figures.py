"""The README's figures: a table in which each is a link to its row, written by `python -m benchmarks report`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.placed import Placed, placed, with_legend
from benchmarks.providers import provider_of
from benchmarks.rows import RESULTS, Run, days, load

PEERS = ("ours", "liger-kernel", "torch.compile", "torch eager")
"""With a column each; the quickest of all others has one, too."""

SHOWN = (
    ("norms", "rms_norm 8192x4096", "forward"),
    ("norms", "rms_norm 8192x4096", "backward"),
    ("norms", "layer_norm 8192x4096", "backward"),
    ("position", "rope 8192 tokens, 32+8 heads of 128", "forward"),
    ("gates", "swiglu 8192x14336", "backward"),
    ("cross_entropy", "cross_entropy 8192x128256", "forward and backward"),
    ("divergences", "jsd 8192x128256", "forward and backward"),
    (
        "linear_cross_entropy",
        "linear_cross_entropy 8192 tokens, hidden 4096, vocabulary 128256",
        "forward and backward",
    ),
    (
        "linear_cross_entropy",
        "linear_cross_entropy 8192 tokens, hidden 2304, vocabulary 256000",
        "forward and backward",
    ),
    (
        "linear_cross_entropy_less",
        "linear_cross_entropy 8192 tokens, hidden 4096, vocabulary 128256, half the labels ignored",
        "forward and backward",
    ),
    (
        "logprobs",
        "linear_logprobs 8192 tokens, hidden 4096, vocabulary 128256, head, logp alone",
        "forward and backward",
    ),
    (
        "linear_jsd",
        "linear_jsd 8192 tokens, hidden 4096 and 4096, vocabulary 128256",
        "forward and backward",
    ),
    (
        "preference",
        "dpo 4 pairs of 1024 tokens, hidden 4096, vocabulary 128256, reference model",
        "forward and backward",
    ),
    ("policy", "grpo 8 answers of 1024 tokens, hidden 4096, vocabulary 128256", "forward and backward"),
)
"""Group, entry and pass: an op of each kind, won or lost."""


def devices(results: Path = RESULTS) -> list[str]:
    """The folders of devices that have rows of these groups, the one with the newest first."""
    dates: dict[str, str] = {}
    for path in sorted(results.glob("*/*.json")):
        if path.stem in {group for group, _, _ in SHOWN}:
            for run in _runs(path):
                dates[path.parent.name] = max(run.date, dates.get(path.parent.name, ""))
    return sorted(dates, key=lambda name: dates[name], reverse=True)


def _runs(path: Path) -> list[Run]:
    """Those of a file, but for runs of an earlier harness, which stand on the pages alone."""
    return [run for run in load(path) if run.source]


def cell(found: Placed) -> str:
    """A share of the ceiling on the device, and the memory where a head is involved."""
    row = found.row
    memory = f" ({row.peak_mb / 1e3:.1f} GB)" if row.of == "products" and row.peak_mb is not None else ""
    return found.link(f"{row.device_share:.2f}{memory}")


def lines(results: Path = RESULTS) -> Iterator[str]:
    """A table for each device, line by line, and what its marks mean."""
    tables = ["\n".join(table(results / folder)) for folder in devices(results)]
    yield from with_legend("\n\n".join(tables) + "\n").splitlines()


def table(folder: Path) -> Iterator[str]:
    """The figures of one device."""
    found: dict[tuple[str, str, str], Placed] = {}
    runs: list[Run] = []
    for group in dict.fromkeys(group for group, _, _ in SHOWN):
        of_group = _runs(folder / f"{group}.json")
        runs += of_group
        rows = placed(of_group, f"docs/benchmarks/{folder.name}/{group}.md")
        found |= {(p.row.entry, p.row.provider, p.row.which): p for p in rows if p.row.device_us is not None}
    newest = max(runs, key=lambda run: run.date)
    named = ("torch", "triton", "liger-kernel")
    versions = ", ".join(f"{name} {newest.versions[name]}" for name in named if name in newest.versions)
    yield f"{newest.device}, {days(runs)}, {versions}; each figure is a link to its row:"
    yield ""
    yield f"| op, bf16 | of | {' | '.join(PEERS)} | quickest other |"
    yield f"|---|---|{'---|' * len(PEERS)}---|"
    for _, entry, which in SHOWN:
        mine = found.get((entry, "ours", which))
        if mine is None:
            continue
        rows_of_peers = (found.get((entry, peer, which)) for peer in PEERS)
        cells = " | ".join("" if p is None else cell(p) for p in rows_of_peers)
        others = [
            p
            for (of, provider, passes), p in found.items()
            if (of, passes) == (entry, which) and provider_of(provider) not in PEERS
        ]
        best = min(others, key=lambda p: p.row.device_us.median, default=None)
        other = "" if best is None else f"{best.row.provider} {cell(best)}"
        yield f"| {entry}, {which} | {mine.row.of} | {cells} | {other} |"

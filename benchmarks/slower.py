"""The README's table of where a peer is faster, written by `python -m benchmarks report`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks import sources
from benchmarks.figures import devices
from benchmarks.placed import Placed, placed, with_legend
from benchmarks.rows import RESULTS, load
from benchmarks.verdicts import apart, compared


def lines(results: Path = RESULTS) -> Iterator[str]:
    """By op and peer, the comparison that is lost by most, of the device that was measured last."""
    for folder in devices(results)[:1]:
        yield from with_legend("\n".join(_table(results / folder)) + "\n").splitlines()


def _table(folder: Path) -> Iterator[str]:
    rows: list[Placed] = []
    for path in sorted(folder.glob("*.json")):
        if path.stem not in ("memory", "models"):
            rows += placed(load(path), f"docs/benchmarks/{folder.name}/{path.stem}.md")
    pairs: dict[tuple[str, str], list[tuple[float, Placed, Placed]]] = {}
    counts: dict[tuple[str, str], int] = {}
    for mine, other in compared(rows):
        on_jax = ", JAX" if mine.row.entry.endswith(", JAX") else ""
        key = (f"{sources.op(mine.row)}{on_jax}", other.row.provider)
        counts[key] = counts.get(key, 0) + 1
        share = other.row.device_us.median / mine.row.device_us.median
        if share < 1.0 and apart(mine.row.device_us, other.row.device_us):
            pairs.setdefault(key, []).append((share, mine, other))
    lost = {key: min(found, key=lambda pair: pair[0]) for key, found in pairs.items()}
    yield (
        "| op | peer | slower by more than two standard errors | its time over ours where it is least | ours, us "
        "| its, us |"
    )
    yield "|---|---|---|---|---|---|"
    for (op, peer), (share, mine, other) in sorted(lost.items(), key=lambda item: item[1][0]):
        size = mine.row.entry.removeprefix(op.removesuffix(", JAX")).removesuffix(", JAX").strip()
        yield (
            f"| {op} | {peer} | {len(pairs[op, peer])} of {counts[op, peer]} | {other.link(f'{share:.2f}')} "
            f"({size}, {mine.row.which}) | {mine.link(f'{mine.row.device_us.median:.1f}')} "
            f"| {' '.join(filter(None, (other.link(f'{other.row.device_us.median:.1f}'), mine.beside(other))))} |"
        )

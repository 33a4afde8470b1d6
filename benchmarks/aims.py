"""What entries aim at, and whether rows reach it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator

from benchmarks.entries import entries
from benchmarks.entry import Entry
from benchmarks.providers import COMPILED, TOKAMAX, XLA, provider_of
from benchmarks.rows import Row

SLOWER_THAN_COMPILED = 1.03
"""No op is to take longer than a compiler's code by more than this, at any size: torch.compile's, and XLA's on JAX."""

AHEAD_OF_TOKAMAX = 1.3
"""How many times faster the fused linear cross entropy on JAX is to be than tokamax's default."""


@dataclasses.dataclass(frozen=True)
class Aim:
    """One aim of one entry, with what was reached.

    Attributes:
        entry: op and size.
        which: the pass.
        text: what is aimed at.
        reached: what was reached, likewise.
        met: whether that is enough.
        part: what was reached over what is aimed at; more is better.
    """

    entry: str
    which: str
    text: str
    reached: str
    met: bool
    part: float


@functools.cache
def _entries() -> dict[str, Entry]:
    return {entry.name: entry for entry in entries()}


def compared(rows: Iterable[Row]) -> Iterator[tuple[Row, Row]]:
    """Each timed row of ours beside each timed row of a peer, of the same op and pass."""
    timed = [r for r in rows if r.device_us is not None]
    ours = {(r.entry, r.which): r for r in timed if r.provider == "ours"}
    for row in timed:
        mine = ours.get((row.entry, row.which))
        if mine is not None and not row.is_ours:
            yield mine, row


def aims(rows: Iterable[Row]) -> Iterator[Aim]:
    """Every aim that the rows can tell of."""
    rows = list(rows)
    for row in rows:
        entry = _entries().get(row.entry)
        if entry is None or row.provider != "ours" or row.device_share is None:
            continue
        if (aim := entry.target.get(row.which)) is not None:
            share = row.device_share
            yield _aim(row, f"{aim:.0%} of {row.of}", f"{share:.1%}", share / aim)
        if row.repeats is False:
            yield _aim(row, "the same bits twice", "other bits", 0.0)
        if entry.within_mb is not None and row.peak_mb is not None:
            text = f"less than {entry.within_mb:.0f} MB"
            yield _aim(row, text, f"{row.peak_mb:.0f} MB", entry.within_mb / row.peak_mb)
    for mine, other in compared(rows):
        assert mine.device_us is not None and other.device_us is not None
        entry, faster = _entries().get(mine.entry), other.device_us.median / mine.device_us.median
        if entry is not None and (aim := entry.ahead.get((other.provider, mine.which))) is not None:
            yield _aim(mine, f"{aim:g} times as fast as {other.provider}", f"{faster:.2f}", faster / aim)
        if entry is not None and (aim := entry.lean.get(other.provider)) is not None:
            assert mine.peak_mb is not None and other.peak_mb is not None
            part = mine.peak_mb / other.peak_mb
            yield _aim(mine, f"{aim:.0%} of the memory of {other.provider}", f"{part:.0%}", aim / part)
        if other.provider == TOKAMAX and mine.entry.startswith("linear_cross_entropy"):
            text = f"{AHEAD_OF_TOKAMAX:g} times as fast as {TOKAMAX}"
            yield _aim(mine, text, f"{faster:.2f}", faster / AHEAD_OF_TOKAMAX)
        if (compiler := provider_of(other.provider)) in (COMPILED, XLA):
            text = f"no slower than {other.provider if compiler == XLA else COMPILED} by over 3 %"
            yield _aim(mine, text, f"{1 / faster:.2f} of its time", faster * SLOWER_THAN_COMPILED)


def _aim(row: Row, text: str, reached: str, part: float) -> Aim:
    return Aim(row.entry, row.which, text, reached, part >= 1.0, part)

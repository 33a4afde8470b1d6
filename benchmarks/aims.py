"""What entries aim at, and whether rows reach it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping

from benchmarks.entries import entries
from benchmarks.entry import BOTH, Entry
from benchmarks.providers import COMPILED, TOKAMAX, XLA, provider_of
from benchmarks.rows import Row

SLOWER_THAN_COMPILED = 1.03
"""No op is to take longer than a compiler's code by more than this, at any size: torch.compile's, and XLA's on JAX."""

AHEAD_OF_TOKAMAX = 1.3
"""How many times faster the fused linear cross entropy on JAX is to be than tokamax's default."""

LEANER_THAN_TOKAMAX = 0.2
"""And in what share of its memory."""

Peaks = Mapping[tuple[str, str], float]
"""MB at most of a step in a process of its own, by entry and provider (`python -m benchmarks memory`)."""


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


def aims(rows: Iterable[Row], peaks: Peaks) -> Iterator[Aim]:
    """Every aim that rows, and peaks of processes of their own, can tell of."""
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
    for mine, other in compared(rows):
        assert mine.device_us is not None and other.device_us is not None
        entry, faster = _entries().get(mine.entry), other.device_us.median / mine.device_us.median
        if entry is not None and (aim := entry.ahead.get((other.provider, mine.which))) is not None:
            yield _aim(mine, f"{aim:g} times as fast as {other.provider}", f"{faster:.2f}", faster / aim)
        if other.provider == TOKAMAX and mine.entry.startswith("linear_cross_entropy"):
            text = f"{AHEAD_OF_TOKAMAX:g} times as fast as {TOKAMAX}"
            yield _aim(mine, text, f"{faster:.2f}", faster / AHEAD_OF_TOKAMAX)
            if mine.peak_mb and other.peak_mb:
                part = mine.peak_mb / other.peak_mb
                text = f"{LEANER_THAN_TOKAMAX:.0%} of the memory of {TOKAMAX}, as XLA plans it"
                yield _aim(mine, text, f"{part:.0%}", LEANER_THAN_TOKAMAX / part)
        if (compiler := provider_of(other.provider)) in (COMPILED, XLA):
            text = f"no slower than {other.provider if compiler == XLA else COMPILED} by over 3 %"
            yield _aim(mine, text, f"{1 / faster:.2f} of its time", faster * SLOWER_THAN_COMPILED)
    yield from _of_memory(rows, peaks)


def _of_memory(rows: Iterable[Row], peaks: Peaks) -> Iterator[Aim]:
    """Aims about peak memory: of processes of their own where all that it takes was measured so."""
    in_run = {(row.entry, row.provider): row.peak_mb for row in rows if row.peak_mb is not None}
    sources = ((peaks, "in processes of their own"), (in_run, "in the process of the timed run"))
    for name, entry in _entries().items():
        for peer, aim in {"": entry.within_mb, **entry.lean}.items():
            wanted = [(name, provider) for provider in ("ours", peer) if provider]
            found = [(of, where) for of, where in sources if all(key in of for key in wanted)]
            if aim is None or not found:
                continue
            of, where = found[0]
            mine, *others = (of[key] for key in wanted)
            if peer:
                text, reached = f"{aim:.0%} of the memory of {peer}", f"{mine / others[0]:.0%}"
                part = aim * others[0] / mine
            else:
                text, reached, part = f"less than {aim:.0f} MB", f"{mine:.0f} MB", aim / mine
            yield Aim(name, BOTH, f"{text}, {where}", reached, part >= 1.0, part)


def _aim(row: Row, text: str, reached: str, part: float) -> Aim:
    return Aim(row.entry, row.which, text, reached, part >= 1.0, part)

"""`python -m benchmarks aims`: hold what the entries aim at, of which the report reads, in aims.json."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from benchmarks import entries, host, host_page
from benchmarks.aims import (
    AHEAD,
    HELD,
    LEAN,
    LEVEL,
    PLANNED,
    SHARE,
    WITHIN,
    Aim,
    hold,
)
from benchmarks.entry import Entry
from benchmarks.jax_side import entries as jax_entries
from benchmarks.jax_side.entry import Entry as JaxEntry
from benchmarks.providers import COMPILED, EAGER, TOKAMAX, XLA
from benchmarks.rows import BACKWARD, BOTH, FORWARD, ROOT

SLOWER_THAN_COMPILED = 1.03
"""No op is to take longer than torch.compile's code by more than this, at any size. Than XLA's it is to take no longer
at all."""

AHEAD_OF_TOKAMAX = 1.3
"""How many times faster the fused linear cross entropy on JAX is to be than tokamax's default."""

LEANER_THAN_TOKAMAX = 0.2
"""And in what share of its memory."""


def of_torch(entry: Entry) -> Iterator[Aim]:
    """What an entry says, and no slower than torch.compile."""
    passes: tuple[str, ...] = (BOTH,)
    if not entry.step:
        differentiated = any(t is not None and t.requires_grad for t in entry.draw("meta"))
        passes = (FORWARD, BACKWARD) if differentiated else (FORWARD,)
    of = "copy" if entry.products is None else "products"
    for which, share in entry.target.items():
        yield Aim(entry.name, which, SHARE, share, of=of)
    for (peer, which), times in entry.ahead.items():
        yield Aim(entry.name, which, AHEAD, times, peer)
    if entry.compiled and EAGER in entry.peers:
        for which in passes:
            yield Aim(entry.name, which, LEVEL, SLOWER_THAN_COMPILED, COMPILED)
    if entry.within_mb is not None:
        yield Aim(entry.name, BOTH, WITHIN, entry.within_mb)
    for peer, share in entry.lean.items():
        yield Aim(entry.name, BOTH, LEAN, share, peer)


def of_jax(entry: JaxEntry) -> Iterator[Aim]:
    """No slower than XLA, and the fused loss ahead of tokamax."""
    passes: tuple[str, ...] = (BOTH,)
    if not entry.step:
        passes = (FORWARD, BACKWARD, BOTH) if entry.wanted else (FORWARD,)
    for which in passes:
        yield Aim(entry.name, which, LEVEL, 1.0, XLA)
    if TOKAMAX in entry.peers and entry.name.startswith("linear_cross_entropy"):
        yield Aim(entry.name, BOTH, AHEAD, AHEAD_OF_TOKAMAX, TOKAMAX)
        yield Aim(entry.name, BOTH, PLANNED, LEANER_THAN_TOKAMAX, TOKAMAX)


def of_host() -> Iterator[Aim]:
    """Microseconds, and beside liger-kernel."""
    for name, case in host.cases().items():
        for which in host_page.AIMS:
            yield from host_page.aims_of(name, which, case.peers)


def current() -> Iterator[Aim]:
    """The aims of all entries."""
    for entry in entries.entries():
        yield from of_torch(entry)
    for _, entry_of_jax in jax_entries.entries():
        yield from of_jax(entry_of_jax)
    yield from of_host()


def arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(options: argparse.Namespace) -> int:
    """Hold them."""
    found = list(current())
    hold(found)
    print(f"{len(found)} aims in {HELD.relative_to(ROOT)}")
    return 0

"""What is aimed at.

The aims are those of the entries, held in aims.json by `python -m benchmarks aims`: the report needs neither torch nor
JAX for them, and tells of those that nothing was measured of.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable
from pathlib import Path

from benchmarks.providers import XLA
from benchmarks.rows import BOTH

HELD = Path(__file__).parent / "aims.json"

SHARE, AHEAD, LEVEL, WITHIN, LEAN, PLANNED, HOST, HOST_AHEAD, BITS = (
    "share of the ceiling",
    "times as fast as a peer",
    "no slower than a compiler by more",
    "MB at most",
    "share of a peer's memory",
    "share of a peer's memory, as XLA plans it",
    "us of an eager call on the host",
    "times less than a peer's on the host",
    "the same bits twice",
)
"""The kinds of aims."""

MORE = (SHARE, AHEAD, HOST_AHEAD)
"""Those of which more is better."""


@dataclasses.dataclass(frozen=True)
class Aim:
    """One aim of one entry.

    Attributes:
        entry: op and size.
        which: the pass.
        kind: what kind of aim.
        value: how much.
        peer: whom it compares with.
        of: the ceiling.
    """

    entry: str
    which: str
    kind: str
    value: float
    peer: str = ""
    of: str = ""

    @property
    def text(self) -> str:
        """In words."""
        return {
            SHARE: f"{self.value:.0%} of {self.of}",
            AHEAD: f"{self.value:g} times as fast as {self.peer}",
            LEVEL: f"no slower than {self.peer} by over {self.value - 1:.0%}"
            if self.peer != XLA
            else "no slower than XLA's best formula",
            WITHIN: f"{self.value:.0f} MB at most",
            LEAN: f"{self.value:.0%} of the memory of {self.peer}",
            PLANNED: f"{self.value:.0%} of the memory of {self.peer}, as XLA plans it",
            HOST: f"{self.value:.0f} us on the host beyond an empty function",
            HOST_AHEAD: f"{self.value:g} times less on the host than {self.peer}",
            BITS: BITS,
        }[self.kind]

    def is_met_by(self, reached: float) -> bool:
        """Whether it is enough; where less is better, whether it is little enough."""
        return reached >= self.value if self.kind in MORE else reached <= self.value

    def figure(self, reached: float, form: str) -> str:
        """What was reached, in this form (".1f"); to more digits where it would look like the aim, and misses it."""
        text = format(reached, form)
        if self.is_met_by(reached) or text != format(self.value, form):
            return text
        return self.figure(reached, f".{int(form[1:-1]) + 1}{form[-1]}")


@dataclasses.dataclass(frozen=True)
class Rejected:
    """An aim that was given up, with what was found where it was tried."""

    entry: str
    which: str
    text: str
    notes: str


REJECTED = (
    Rejected(
        "linear_cross_entropy 8192 tokens, hidden 4096, vocabulary 128256",
        BOTH,
        "95% of products, the loss kernel beside the next chunk's products",
        "benchmarks/NOTES.md#the-loss-kernel-beside-the-products",
    ),
)


@functools.cache
def held() -> tuple[Aim, ...]:
    """The aims of all entries."""
    return tuple(Aim(**found) for found in json.loads(HELD.read_text()))


def hold(aims: Iterable[Aim]) -> None:
    """Keep them, one a line."""
    lines = (
        json.dumps({name: value for name, value in dataclasses.asdict(aim).items() if value != ""})
        for aim in aims
    )
    HELD.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    held.cache_clear()

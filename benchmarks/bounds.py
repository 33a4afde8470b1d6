"""What is reached at best: at the ceiling itself, by the time that it takes in the row of ours.

Neither a copy nor the vendor's products are the last word of the hardware: kernels that read more than they write pass
a copy. So where ours or the peer has passed the ceiling nothing is said.
"""

from __future__ import annotations

from benchmarks.aims import AHEAD, LEVEL, Aim
from benchmarks.rows import Row, Spread

BEYOND = "beyond the ceiling"


def at_best(aim: Aim, ours: Row, peer: Spread, ceilings: float = 1.0) -> float | None:
    """Beside a peer, if ours took no longer than its ceiling, or than so many of them; None where nobody knows."""
    share = ours.device_share
    if aim.kind not in (AHEAD, LEVEL) or ours.ceiling_us is None or share is None or share * ceilings > 1:
        return None
    if peer.median < ours.ceiling_us:
        return None
    least = ours.ceiling_us * ceilings
    return peer.median / least if aim.kind == AHEAD else least / peer.median


def beyond(aim: Aim, ours: Row, peer: Spread, ceilings: float = 1.0) -> str:
    """That an aim cannot be met even at the ceiling, and what could be; '' where it can."""
    best = at_best(aim, ours, peer, ceilings)
    if best is None or aim.is_met_by(best):
        return ""
    whose = " of products computed twice" if ceilings > 1 else ""
    return f"{BEYOND}{whose} ({aim.figure(best, '.2f')} at best)"

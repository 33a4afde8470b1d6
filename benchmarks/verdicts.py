"""Whether rows reach what is aimed at, and where they are behind a peer's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping

from benchmarks.aims import AHEAD, BITS, HOST, HOST_AHEAD, LEAN, LEVEL, PLANNED, SHARE, WITHIN, Aim
from benchmarks.bounds import BEYOND, beyond
from benchmarks.host_page import EMPTY, LAUNCH, ON_AUTOGRADS_THREAD, on_autograds_thread, times_less, told
from benchmarks.placed import Placed
from benchmarks.providers import EAGER, provider_of
from benchmarks.reasons import reason_of
from benchmarks.rows import FORWARD, Spread

NEARLY = "within two standard errors"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of an aim.

    Attributes:
        aim: the aim.
        reached: what was reached, each figure with a link to its row; why there is nothing where it is not measured.
        met: whether that is enough; None where it is not measured.
        remark: what else there is to say, beginning with `BEYOND` or `NEARLY`; where it is met, `NEARLY` or nothing.
    """

    aim: Aim
    reached: str = ""
    met: bool | None = None
    remark: str = ""

    @property
    def verdict(self) -> str:
        """In words."""
        if self.met is None:
            return "not measured"
        if self.met:
            return "met"
        return f"missed, {self.remark}" if self.remark else "missed"

    @property
    def kind(self) -> str:
        """How it is missed: `BEYOND`, `NEARLY`, or ''; '' where it is not."""
        if self.met is not False:
            return ""
        return next((kind for kind in (BEYOND, NEARLY) if self.remark.startswith(kind)), "")


def compared(rows: Iterable[Placed]) -> Iterator[tuple[Placed, Placed]]:
    """Each timed row of ours beside each timed row of a peer, of the same op and pass."""
    timed = [r for r in rows if r.row.device_us is not None]
    ours = {(r.row.entry, r.row.which): r for r in timed if r.row.provider == "ours"}
    for row in timed:
        mine = ours.get((row.row.entry, row.row.which))
        if mine is not None and not row.row.is_ours:
            yield mine, row


def apart(mine: Spread, other: Spread) -> bool:
    """Whether their medians differ by more than two standard errors of the difference."""
    return abs(mine.median - other.median) > 2 * math.hypot(mine.error, other.error)


def nearly(aim: Aim, figure: float, *of: Spread | None) -> str:
    """`NEARLY` where two standard errors of a figure, a ratio of such medians, decide whether it meets the aim."""
    found = [spread for spread in of if spread is not None]
    error = 2 * math.hypot(*(spread.error / spread.median for spread in found))
    return NEARLY if aim.is_met_by(figure * (1 + error)) != aim.is_met_by(figure * (1 - error)) else ""


class Measured:
    """The rows of a device, to be judged.

    Args:
        rows: of ops, and of eager calls on the host.
        peaks: of steps in processes of their own.
        aims: those to judge by.
    """

    def __init__(self, rows: Iterable[Placed], peaks: Iterable[Placed], aims: Iterable[Aim]) -> None:
        rows, peaks = list(rows), list(peaks)
        self.aims = tuple(aims)
        self._timed = {(r.row.entry, r.row.provider, r.row.which): r for r in rows if r.row.device_us}
        self._host = {
            (r.row.entry, r.row.provider, r.row.which): r
            for r in rows
            if r.row.wall_us and not r.row.device_us
        }
        self._notes = {(r.row.entry, r.row.provider): r.row.note for r in rows if not r.row.which}
        in_run = {(r.row.entry, r.row.provider): r for r in rows if r.row.peak_mb is not None}
        of_steps = {(p.row.entry, p.row.provider): p for p in peaks if p.row.peak_mb is not None}
        self._peaks = ((of_steps, "in processes of their own"), (in_run, "in the process of the timed run"))
        self._absent = {
            (p.row.entry, name): f"absent: {reason}"
            for p in sorted((*rows, *peaks), key=lambda p: p.run.date)
            for name, reason in p.run.absent.items()
        }
        self._rows = rows

    def verdicts(self) -> Iterator[Verdict]:
        """Of every aim, and where a second call gave other bits."""
        for aim in self.aims:
            yield self._of(aim)
        for placed in self._rows:
            if placed.row.repeats is False:
                aim = Aim(placed.row.entry, placed.row.which, BITS, 1.0)
                yield Verdict(aim, placed.link("other bits"), False)

    def _of(self, aim: Aim) -> Verdict:
        judge = {
            SHARE: self._share,
            AHEAD: self._ahead,
            LEVEL: self._level,
            WITHIN: self._memory,
            LEAN: self._memory,
            PLANNED: self._planned,
            HOST: self._on_the_host,
            HOST_AHEAD: self._on_the_host,
        }[aim.kind]
        return judge(aim) or Verdict(aim, self._why(aim))

    def _why(self, aim: Aim) -> str:
        if not any(p.row.entry == aim.entry for p in self._rows):
            return "no run has it"
        keys = [(aim.entry, name) for name in ("ours", aim.peer)]
        said = [found.get(key, "") for key in keys for found in (self._notes, self._absent)]
        return next(filter(None, said), "")

    def _share(self, aim: Aim) -> Verdict | None:
        mine = self._timed.get((aim.entry, "ours", aim.which))
        if mine is None or mine.row.device_share is None:
            return None
        share = mine.row.device_share
        remark = nearly(aim, share, mine.row.device_us, mine.row.ceiling)
        return Verdict(aim, mine.link(aim.figure(share, ".1%")), aim.is_met_by(share), remark)

    def _ahead(self, aim: Aim) -> Verdict | None:
        mine, other = (self._timed.get((aim.entry, name, aim.which)) for name in ("ours", aim.peer))
        if mine is None or other is None:
            return None
        faster = other.row.device_us.median / mine.row.device_us.median
        reached = f"{mine.link(aim.figure(faster, '.2f'))} ({_us(mine)}, its {_of_peer(mine, other)})"
        remark = _beyond(aim, mine, other) or nearly(aim, faster, mine.row.device_us, other.row.device_us)
        return Verdict(aim, reached, aim.is_met_by(faster), remark)

    def _level(self, aim: Aim) -> Verdict | None:
        """Beside the fastest variant of the peer's."""
        others = [
            placed
            for (entry, provider, which), placed in self._timed.items()
            if (entry, which) == (aim.entry, aim.which) and provider_of(provider) == aim.peer
        ]
        mine = self._timed.get((aim.entry, "ours", aim.which))
        if mine is None or not others:
            return None
        other = min(others, key=lambda placed: placed.row.device_us.median)
        slower = mine.row.device_us.median / other.row.device_us.median
        figure = mine.link(aim.figure(slower, ".3f"))
        reached = f"{figure} of {other.row.provider} ({_us(mine)}, its {_of_peer(mine, other)})"
        remark = _beyond(aim, mine, other) or nearly(aim, slower, mine.row.device_us, other.row.device_us)
        return Verdict(aim, reached, aim.is_met_by(slower), remark)

    def _memory(self, aim: Aim) -> Verdict | None:
        """By processes of their own where all that it takes was measured so."""
        wanted = [(aim.entry, provider) for provider in ("ours", aim.peer) if provider]
        for peaks, where in self._peaks:
            if all(key in peaks for key in wanted):
                mine, *others = (peaks[key] for key in wanted)
                mb = mine.row.peak_mb
                if not others:
                    figure = mine.link(f"{aim.figure(mb, '.0f')} MB")
                    return Verdict(aim, f"{figure}, {where}", aim.is_met_by(mb))
                share = mb / others[0].row.peak_mb
                figure = mine.link(aim.figure(share, ".0%"))
                reached = f"{figure} of {others[0].link(f'{others[0].row.peak_mb:.0f} MB')}"
                return Verdict(aim, f"{reached}, {where}", aim.is_met_by(share))
        return None

    def _planned(self, aim: Aim) -> Verdict | None:
        mine, other = (self._timed.get((aim.entry, name, aim.which)) for name in ("ours", aim.peer))
        if mine is None or other is None or not mine.row.peak_mb or not other.row.peak_mb:
            return None
        share = mine.row.peak_mb / other.row.peak_mb
        return Verdict(aim, mine.link(aim.figure(share, ".0%")), aim.is_met_by(share))

    def _on_the_host(self, aim: Aim) -> Verdict | None:
        """Beyond an empty function, and beside what a launch by torch takes there."""
        names = ("ours", EMPTY, *filter(None, [aim.peer]))
        found = [self._host.get((aim.entry, name, aim.which)) for name in names]
        if None in found:
            return None
        mine, nothing, *others = (placed for placed in found if placed is not None)
        more = mine.row.wall_us.median - nothing.row.wall_us.median
        remark = ON_AUTOGRADS_THREAD if on_autograds_thread(mine) else ""
        if not others:
            reached = mine.link(f"{told(aim, more)} us")
            if launch := self._host.get((LAUNCH, EAGER, FORWARD)):
                reached += f" (a launch by torch: {launch.link(f'{launch.row.wall_us.median:.1f}')})"
            return Verdict(aim, reached, aim.is_met_by(more), remark)
        times = times_less(more, others[0].row.wall_us.median - nothing.row.wall_us.median)
        unit = " times less" if times < math.inf else ""
        return Verdict(aim, f"{mine.link(told(aim, times))}{unit}", aim.is_met_by(times), remark)


def _beyond(aim: Aim, mine: Placed, other: Placed) -> str:
    reason = reason_of(aim)
    return beyond(aim, mine.row, other.row.device_us, reason.ceilings if reason else 1.0)


def _of_peer(mine: Placed, other: Placed) -> str:
    """A peer's time, and whether it is of another run than ours."""
    return ", ".join(filter(None, (_us(other), mine.beside(other))))


def _us(placed: Placed) -> str:
    spread = placed.row.device_us
    median = placed.link(f"{spread.median:.1f}")
    return f"{median}, {spread.range} us" if spread.samples > 1 else f"{median} us, {spread.range}"


def counts(verdicts: Iterable[Verdict]) -> Mapping[str, int]:
    """How many were met, missed and not measured."""
    found = {"met": 0, "missed": 0, "not measured": 0}
    for verdict in verdicts:
        found[verdict.verdict.split(",")[0]] += 1
    return found

"""What a measurement leaves: rows of JSON, with the run that they come from.

A file results/DEVICE/NAME.json holds the rows of one group of ops, or of one command, as a list of runs. An entry that
is measured anew has its rows in the newer run only, but for peers that were not installed there, so that a file can be
filled in several sittings and every row still stands under the versions, the date and the copy that it was measured
with. Nothing here needs torch or a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import sources
from benchmarks.providers import provider_of

ROOT = sources.ROOT
RESULTS = Path(__file__).parent / "results"
FORWARD, BACKWARD, BOTH = PASSES = ("forward", "backward", "forward and backward")
DRIFT = 0.02
"""By so much may the rate of the copy change during a run; more is told, and the run fails."""
EARLIER = "an earlier harness"
"""Of runs that have no digest of their source."""
PACKAGES = (
    "torch",
    "triton",
    "jax",
    "jax-triton",
    "optax",
    "tokamax",
    "transformers",
    "liger-kernel",
    "quack-kernels",
    "nvidia-cutlass-dsl",
    "cut-cross-entropy",
    "trl",
)


def versions() -> dict[str, str]:
    """The versions of what is installed of the packages that matter."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def processor() -> dict[str, str]:
    """The CPU's model, and the cores that this process may use: what a call costs the host depends on them."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = named[1] if named else model
    return {"CPU": model, "cores": str(len(os.sched_getaffinity(0)))}


def command() -> str:
    """What was called, to be pasted again; without where its results went, which is a place on one machine."""
    words = sys.argv[1:]
    if "--output" in words:
        place = words.index("--output")
        words = words[:place] + words[place + 2 :]
    words = [word for word in words if not word.startswith("--output=")]
    return shlex.join(["python", "-m", "benchmarks", *words])


def slug(text: str) -> str:
    """Small letters, digits and hyphens: for folders of devices, and for places on a page."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def file_of(output: Path, device: str, name: str) -> Path:
    """Where the rows of a group or a command are kept."""
    return output / slug(device) / f"{name}.json"


def number(value: float | None, form: str) -> str:
    """In a table; nothing of None."""
    return "" if value is None else format(value, form)


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median and the 20th and 80th percentile of a number of samples, in microseconds if nothing else is said."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Of at least one sample."""
        ordered = sorted(samples)

        def at(share: float) -> float:
            return round(ordered[min(int(share * len(ordered)), len(ordered) - 1)], 3)

        return cls(at(0.5), at(0.2), at(0.8), len(ordered))

    @property
    def error(self) -> float:
        """The standard error of the median, as of normal samples; of one number alone nobody knows it."""
        if self.samples == 1:
            return math.inf
        return 1.2533 * (self.high - self.low) / 1.6832 / self.samples**0.5

    def times(self, factor: float) -> Spread:
        """Of each sample multiplied."""
        return Spread(factor * self.median, factor * self.low, factor * self.high, self.samples)

    @property
    def range(self) -> str:
        """In words, to a tenth; one number alone is the mean of several calls."""
        return f"{self.low:.1f} to {self.high:.1f}" if self.samples > 1 else "a mean"


@dataclasses.dataclass(frozen=True)
class Row:
    """One implementation of one op at one size.

    Attributes:
        entry: op and size.
        provider: the implementation: "ours", "ours: VARIANT", a peer's name, or "PEER: VARIANT".
        which: "forward", "backward" or "forward and backward".
        device_us: time on the device; None where the implementation was not timed.
        wall_us: eager calls by the host's clock, the device waited for at the end of a block of calls.
        of: the ceiling, "copy" or "products".
        ceiling_us: what the ceiling takes on the device for the least bytes, or for the same products, in the same run.
        error: relative error of outputs and gradients against float64, on a few rows; the largest.
        peak_mb: memory beyond the operands, outputs and gradients included.
        note: why it was not timed, or what else there is to say.
        clock_mhz: of the multiprocessors after each block of eager calls; the median.
        power_w: likewise.
        temperature_c: likewise.
        repeats: whether a second call gave the same bits.
        least_bytes: what is to be read and written at least; None where no op tells.
        flops: of the products, where these are the ceiling.
        ceiling: ceiling_us with its spread; rows of before 2026-11-30 have the median alone.
    """

    entry: str
    provider: str
    which: str
    device_us: Spread | None = None
    wall_us: Spread | None = None
    of: str = "copy"
    ceiling_us: float | None = None
    error: float | None = None
    peak_mb: float | None = None
    note: str = ""
    clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    repeats: bool | None = None
    least_bytes: int | None = None
    flops: int | None = None
    ceiling: Spread | None = None

    @property
    def device_share(self) -> float | None:
        """The ceiling's time over the device's."""
        return self._share(self.device_us)

    @property
    def wall_share(self) -> float | None:
        """The ceiling's time over the wall clock's; None of products, whose clock in the other phase is another one."""
        return self._share(self.wall_us) if self.of == "copy" else None

    @property
    def key(self) -> str:
        """What is measured anew as a whole."""
        return self.entry

    @property
    def failed(self) -> bool:
        """Whether it is ours and broke off, or was not right; a peer that cannot do it is a result."""
        return self.is_ours and self.note.startswith(("failed", "absent", "not timed"))

    def _share(self, time: Spread | None) -> float | None:
        return None if time is None or self.ceiling_us is None else self.ceiling_us / time.median

    @property
    def is_ours(self) -> bool:
        """Whether it is this package's, or a variant of it."""
        return provider_of(self.provider) == "ours"

    @property
    def anchor(self) -> str:
        """Its place on a page."""
        return slug(f"{self.entry} {self.provider} {self.which}")


@dataclasses.dataclass(frozen=True)
class Run:
    """Rows with what they have in common.

    Attributes:
        device: the GPU's name.
        date: of the day.
        command: that measured them.
        versions: of packages.
        copy_tb_s: what a copy moved, before and after, None after a run that was cut short; None where none was timed.
        rows: what was measured: of `Row`, or of another dataclass with `key` and `failed`.
        source: a digest of all of the package's code (until 2026-11-30 with comments); empty of an earlier harness.
        sources: digests of the code that was measured, by family (`benchmarks.sources`).
        absent: providers that could not be measured, each with the reason.
        hardware: driver, limits of power and clock; the CPU and how many cores of it.
    """

    device: str
    date: str
    command: str
    versions: dict[str, str]
    copy_tb_s: tuple[float, float | None] | None
    rows: tuple[Any, ...]
    source: str = ""
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hardware: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def now(
        cls,
        device: str,
        copy: tuple[float, float | None] | None,
        rows: Iterable[Any],
        absent: Mapping[str, str],
        hardware: Mapping[str, str],
    ) -> Run:
        """Of this process; `copy` is the rate of a copy in bytes per microsecond, before and after."""
        rates = copy and (round(copy[0] / 1e6, 3), copy[1] and round(copy[1] / 1e6, 3))
        rows = tuple(rows)
        return cls(
            device,
            datetime.date.today().isoformat(),
            command(),
            versions(),
            rates,
            rows,
            sources.digest(sources.EVERYTHING),
            absent,
            {**hardware, **processor()},
            {name: sources.digest(name) for name in sorted(set(map(sources.family, rows)))},
        )

    @property
    def about(self) -> str:
        """Where its rows come from: a line of a list in Markdown."""
        named = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        hardware = "".join(f"; {name} {value}" for name, value in self.hardware.items())
        copy = ""
        if self.copy_tb_s:
            before, after = self.copy_tb_s
            end = "; the run was cut short" if self.was_cut_short else f" and {after} after"
            end += f" (it drifted by {self.drift:.1%}: the figures do not compare)" if self.drifted else ""
            copy = f"a copy moved {before} TB/s before{end}; "
        source = f"source {self.source}" if self.source else f"{EARLIER} (benchmarks/README.md)"
        absent = "".join(f"; absent: {name} ({reason})" for name, reason in self.absent.items())
        return f"- {len(self.rows)} rows of {self.date}: `{self.command}`; {copy}{named}{hardware}; {source}{absent}.\n"

    @property
    def drift(self) -> float:
        """By which share the copy's rate changed."""
        before, after = self.copy_tb_s or (1.0, 1.0)
        return abs((after or before) / before - 1)

    @property
    def drifted(self) -> bool:
        """Whether by so much that its figures do not compare."""
        return self.drift > DRIFT

    @property
    def was_cut_short(self) -> bool:
        """Whether it ended before the copy was measured again, so that nobody knows whether it drifted."""
        return self.copy_tb_s is not None and self.copy_tb_s[1] is None

    @property
    def has_versions(self) -> bool:
        """Whether all packages that are here now were there in the same version."""
        return versions().items() <= self.versions.items()

    def is_older(self, row: Any) -> bool:
        """Whether one of its rows is of code of ours that has changed since."""
        family = sources.family(row)
        return row.is_ours and family in self.sources and self.sources[family] != sources.digest(family)

    def is_untold(self, row: Any) -> bool:
        """Whether one of its rows is of code of ours that its digests do not tell."""
        return row.is_ours and sources.family(row) not in self.sources

    def before(self, newer: Run) -> Run:
        """Without what a newer run has measured anew; a provider that it did not have keeps its rows."""
        keys = {row.key for row in newer.rows}
        told = {(row.key, row.provider) for row in newer.rows} if newer.absent else set()

        def stays(row: Any) -> bool:
            if row.key not in keys:
                return True
            if not newer.absent or provider_of(row.provider) not in newer.absent:
                return False
            return (row.key, row.provider) not in told

        return dataclasses.replace(self, rows=tuple(filter(stays, self.rows)))


def show(row: Row) -> str:
    """One line."""
    if row.device_us is None or row.wall_us is None:
        error = "" if row.error is None else f" (error {row.error:.1e})"
        return f"{row.entry:56s} {row.provider:26s} {row.note}{error}"
    clock = "" if row.clock_mhz is None else f"  {row.clock_mhz:.0f} MHz {row.power_w:.0f} W"
    wall_share = "     " if row.wall_share is None else f"{row.wall_share:5.2f}"
    return (
        f"{row.entry:56s} {row.provider:26s} {row.which:20s} device {row.device_us.median:9.1f} us "
        f"{row.device_share:5.2f}  wall {row.wall_us.median:9.1f} us {wall_share} of {row.of:8s} "
        f"error {row.error:.1e}  peak {row.peak_mb:6.0f} MB{clock}  {row.note}".rstrip()
    )


def read_row(values: dict[str, Any]) -> Row:
    """A row of what JSON holds."""
    times = {n: (found := values.get(n)) and Spread(**found) for n in ("device_us", "wall_us", "ceiling")}
    return Row(**(values | times))


def load(path: Path, row: Callable[[dict[str, Any]], Any] = read_row) -> tuple[Run, ...]:
    """The runs of a file, oldest first; none where there is no file."""
    if not path.exists():
        return ()
    runs = []
    for found in json.loads(path.read_text())["runs"]:
        copy = found["copy_tb_s"]
        rows = tuple(map(row, found["rows"]))
        runs.append(Run(**(found | {"copy_tb_s": copy and tuple(copy), "rows": rows})))
    return tuple(runs)


SINCE = ("least_bytes", "flops", "ceiling")
"""Fields that rows of before 2026-11-30 do not have, and that are left out of theirs."""


def _told(row: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in dataclasses.asdict(row).items()
        if value is not None or name not in SINCE
    }


def save(path: Path, runs: Iterable[Run]) -> None:
    """Write the runs that have rows as JSON, one row per line, so that a change shows as the lines that changed."""
    blocks = []
    for run in runs:
        if not run.rows:
            continue
        head = {f.name: getattr(run, f.name) for f in dataclasses.fields(run) if f.name != "rows"}
        lines = ",\n".join("    " + json.dumps(_told(row)) for row in run.rows)
        blocks.append(
            json.dumps(head, indent=2).removesuffix("\n}") + ',\n  "rows": [\n' + lines + "\n  ]\n}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".part")  # a run may be cut short in between
    written.write_text('{"runs": [\n' + ",\n".join(blocks) + "\n]}\n")
    written.replace(path)


def keep(path: Path, run: Run, before: Iterable[Run]) -> None:
    """Write a run after those of `before`, which lose what it has measured anew."""
    save(path, (*(older.before(run) for older in before), run))


def measured_now(runs: Iterable[Run]) -> set[Any]:
    """The keys of what was measured from the code and with the packages that are here now.

    What failed is told, and left out. Where a provider of an older run keeps its rows, the newest run decides.
    """
    runs = tuple(runs)
    newest = {row.key: run for run in runs for row in run.rows}
    left_out: set[Any] = set()
    failed: dict[Any, str] = {}
    for run in runs:
        drifted, has_versions = (
            f"the copy drifted by {run.drift:.1%}" if run.drifted else "",
            run.has_versions,
        )
        for row in (row for row in run.rows if newest[row.key] is run):
            if not has_versions or run.is_older(row) or run.is_untold(row):
                left_out.add(row.key)
            elif drifted or row.failed:
                failed[row.key] = drifted or row.note
    for key, why in failed.items():
        print(f"again: {key}: {why}")
    return newest.keys() - left_out - failed.keys()


def conclude(run: Run, path: Path) -> int:
    """Tell how a run ended; the exit status is 1 if the copy drifted or one of ours was not timed."""
    if run.copy_tb_s and run.copy_tb_s[1]:
        print(f"copy again {run.copy_tb_s[1]:.2f} TB/s")
    print(f"{len(run.rows)} rows in {path}")
    if run.drifted:
        print(f"The copy drifted by more than {DRIFT:.0%}: the figures do not compare.")
    missing = [row for row in run.rows if row.provider == "ours" and row.device_us is None]
    return 1 if run.drifted or missing else 0


def days(runs: Iterable[Run]) -> str:
    """When they were measured."""
    dates = sorted({run.date for run in runs})
    return dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"


def rows_of(runs: Iterable[Run]) -> list[Any]:
    """All rows."""
    return [row for run in runs for row in run.rows]

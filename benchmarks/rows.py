"""What a measurement leaves: rows of JSON, each of which says where it comes from."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch",
    "triton",
    "jax",
    "jax-triton",
    "transformers",
    "liger-kernel",
    "quack-kernels",
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


@dataclasses.dataclass(frozen=True)
class Spread:
    """Microseconds: the median and the 20th and 80th percentile of a number of samples."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Of at least one sample."""
        ordered = sorted(samples)

        def at(share: float) -> float:
            return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

        return cls(at(0.5), at(0.2), at(0.8), len(ordered))


@dataclasses.dataclass(frozen=True)
class Row:
    """One implementation of one op at one size.

    Attributes:
        entry: op and size.
        provider: the implementation; "ours", or a peer's name.
        which: "forward", "backward" or "forward and backward".
        device_us: time on the device; None where the implementation was not timed.
        wall_us: eager calls by the host's clock, the device waited for at the end of a block of calls.
        of: the ceiling, "copy" or "products".
        ceiling_us: what the ceiling takes for the least bytes, or for the same products, in the same run.
        error: relative error of outputs and gradients against float64, on a few rows; the largest.
        peak_mb: memory beyond the operands, outputs and gradients included.
        note: why it was not timed, or what else there is to say.
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

    @property
    def device_share(self) -> float | None:
        """The ceiling's time over the device's."""
        return (
            None
            if self.device_us is None or self.ceiling_us is None
            else self.ceiling_us / self.device_us.median
        )

    @property
    def wall_share(self) -> float | None:
        """The ceiling's time over the wall clock's."""
        return (
            None if self.wall_us is None or self.ceiling_us is None else self.ceiling_us / self.wall_us.median
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """Rows with what they have in common."""

    device: str
    date: str
    command: str
    versions: dict[str, str]
    copy_tb_s: tuple[float, float]  # before and after
    rows: tuple[Row, ...]

    @classmethod
    def now(cls, copy_tb_s: tuple[float, float], rows: Iterable[Row]) -> Run:
        """Of this process."""
        command = " ".join(["python -m benchmarks", *sys.argv[1:]])
        date = datetime.date.today().isoformat()
        return cls(torch.cuda.get_device_name(), date, command, versions(), copy_tb_s, tuple(rows))

    def save(self, path: Path) -> None:
        """Write the run as JSON, one row per line, so that a change shows as the lines that changed."""
        head = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "rows"}
        lines = ",\n".join("    " + json.dumps(dataclasses.asdict(row)) for row in self.rows)
        text = json.dumps(head, indent=2).removesuffix("\n}") + ',\n  "rows": [\n' + lines + "\n  ]\n}\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read what `save` wrote."""
        found = json.loads(path.read_text())

        def row(values: dict) -> Row:
            times = {n: values[n] and Spread(**values[n]) for n in ("device_us", "wall_us")}
            return Row(**(values | times))

        rows = tuple(map(row, found.pop("rows")))
        return cls(**{**found, "copy_tb_s": tuple(found["copy_tb_s"]), "rows": rows})

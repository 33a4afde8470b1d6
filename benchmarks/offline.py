"""`python -m benchmarks offline`: what can be said of speed and memory without a GPU, and held.

Of every call of the catalogue, planned for an H200: its launches, the bytes that they move forward and backward, and
the least that any implementation moves (`liger.plan.least_bytes`; that formulas and launches agree with what kernels do
is tested in the interpreter, registers and spills in tests/aot). The figures are kept in results/offline.json; one that
grew fails, until `--write` says that it was meant.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.rows import RESULTS
from liger.device import H200
from liger.launch import Spec
from liger.plan import least_bytes, passes
from liger_triton.catalogue import FAMILIES

KEPT = RESULTS / "offline.json"


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one call moves on one device.

    Attributes:
        launches: kernels that run, forward and backward.
        forward: bytes that the forward pass's kernels move; matrix products are not counted.
        backward: likewise.
        least_forward: the least that any implementation moves.
        least_backward: likewise.
    """

    launches: int
    forward: int
    backward: int
    least_forward: int
    least_backward: int


def traffic() -> Iterator[tuple[str, Traffic]]:
    """Of every call of the catalogue."""
    for family in FAMILIES:
        for call in family():
            forward, backward = passes(
                call.op, call.options, call.operands, call.asked, H200, call.constant, call.parts
            )
            specs = [None if a is None else Spec(a.shape, a.dtype) for a in call.operands]
            least = least_bytes(call.op, call.options, specs, call.asked)
            yield (
                call.name,
                Traffic(
                    len(forward) + len(backward),
                    sum(launch.traffic for launch, _ in forward),
                    sum(launch.traffic for launch, _ in backward),
                    least[0],
                    least[1],
                ),
            )


def kept(path: Path = KEPT) -> dict[str, Traffic]:
    """The figures that are held."""
    return {name: Traffic(**values) for name, values in json.loads(path.read_text()).items()}


def complaints(found: Mapping[str, Traffic], held: Mapping[str, Traffic]) -> list[str]:
    """What grew, and which calls are on one side only."""
    said = []
    for name in sorted(found.keys() | held.keys()):
        now, then = found.get(name), held.get(name)
        if now is None or then is None:
            said.append(f"{name}: {'gone' if now is None else 'new'}; python -m benchmarks offline --write")
            continue
        for field in ("launches", "forward", "backward"):
            a, b = getattr(now, field), getattr(then, field)
            if a > b:
                said.append(f"{name}: {field} grew from {b:,} to {a:,}")
    return said


def _of(name: str, moved: int, least: int) -> str:
    share = f"{moved / least:.2f}" if least and not name.startswith("linear_") else ""
    return f"{moved / 1e6:11.1f} {share:>5s}"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Whether to keep what is found."""
    parser.add_argument("--write", action="store_true", help="keep the figures")


def run(options: argparse.Namespace) -> int:
    """Print the figures, and compare them with those held."""
    found = dict(traffic())
    print(
        "MB that kernels move, and as a multiple of the least (not of linear ops, whose products are not counted)"
    )
    print(f"{'call':52s} {'launches':>8s} {'forward':>17s} {'backward':>17s}")
    for name, t in found.items():
        forward, backward = _of(name, t.forward, t.least_forward), _of(name, t.backward, t.least_backward)
        print(f"{name:52s} {t.launches:8d} {forward} {backward}")
    if options.write:
        lines = ",\n".join(
            f"  {json.dumps(n)}: {json.dumps(dataclasses.asdict(t))}" for n, t in found.items()
        )
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        KEPT.write_text("{\n" + lines + "\n}\n")
        return 0
    said = complaints(found, kept())
    print("\n".join(said) if said else f"{len(found)} calls: none moves more than before")
    return 1 if said else 0

"""The page of what is held without a GPU: bytes, memory, registers, and XLA's programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.offline import SECTIONS
from benchmarks.offline.occupancy import resident_warps
from liger.device import PRESETS

Figures = Mapping[str, Mapping[str, Any]]

HEAD = """# What is counted, planned and compiled

Found without a GPU by `python -m benchmarks offline` and held in `benchmarks/results/offline-*.json`: a figure that
grows fails there. Bytes and memory are in 1e6.

"Of the least" is the bytes over those of a call that reads each array that it needs once and writes each result once;
matrix products are not counted. The least takes arrays whole, tables too: a call that looks up some rows of one
(embeddings, positions), or is asked for few of its gradients, can move less, and is below 1. XLA's programs are those
of the version of JAX that is named there, and of no other.
"""


def _mb(n: float) -> str:
    return f"{n / 1e6:,.1f}"


def _over(n: float, least: float) -> str:
    return f"{n / least:.2f}" if least else ""


def traffic(figures: Figures) -> Iterator[str]:
    """Bytes of a call, by the formulas of its launches, and over the least; matrix products are not counted."""
    yield "| call | launches | forward, MB | of the least | backward, MB | of the least |"
    yield "|---|---|---|---|---|---|"
    for name, line in figures.items():
        sides = (
            f"{_mb(line[side])} | "
            + ("" if name.startswith("linear_") else _over(line[side], line[f"least_{side}"]))
            for side in ("forward", "backward")
        )
        yield f"| `{name}` | {line['launches']} | {' | '.join(sides)} |"


def peaks(figures: Figures) -> Iterator[str]:
    """Memory beyond the operands."""
    yield "| call | forward, MB | step, MB |"
    yield "|---|---|---|"
    for name, line in figures.items():
        yield f"| `{name}` | {_mb(line['forward']) if 'forward' in line else ''} | {_mb(line['step'])} |"


def counted(figures: Figures) -> Iterator[str]:
    """Bytes of small calls in the interpreter; matrix products are not counted."""
    yield "| call | bytes | of the least |"
    yield "|---|---|---|"
    for name, line in figures.items():
        share = "" if name.startswith("linear_") else _over(line["counted"], line["least"])
        yield f"| `{name}` | {line['counted']:,} | {share} |"


def compiled(figures: Figures) -> Iterator[str]:
    """Registers of a thread, warps that a multiprocessor holds, and bytes that are spilt where there are any."""
    for target in PRESETS:
        spilt = sum(bool(line[target][3]) for line in figures.values() if target in line)
        yield f"- {target}: {spilt} of {len(figures)} launches spill"
    yield ""
    yield f"| launch: registers of a thread / warps of a multiprocessor | {' | '.join(PRESETS)} |"
    yield f"|---|{'---|' * len(PRESETS)}"
    for name, line in figures.items():
        yield f"| `{name}` | {' | '.join(_registers(target, line.get(target)) for target in PRESETS)} |"


def _registers(target: str, line: list[int] | None) -> str:
    if line is None:
        return ""
    warps, registers, shared, spilt = line
    resident = resident_warps(PRESETS[target], warps, registers, shared)
    return f"{registers} / {resident}" + (f", spills {spilt} bytes" if spilt else "")


def xla(figures: Figures) -> Iterator[str]:
    """Temporaries and kernels of value and gradients, beside XLA's program of the plain formula."""
    yield "| program | temporary, MB | of the plain formula | kernels | of the plain formula |"
    yield "|---|---|---|---|---|"
    for name, line in figures.items():
        yield (
            f"| `{name}` | {_mb(line['temporary'])} | {_mb(line['plain_temporary'])} | {line['kernels']} "
            f"| {line['plain_kernels']} |"
        )


TABLES: Mapping[str, Callable[[Figures], Iterator[str]]] = {
    "traffic": traffic,
    "peaks": peaks,
    "counted": counted,
    "compiled": compiled,
    "xla": xla,
}


def page(results: Path) -> str:
    """In Markdown; empty where nothing is held."""
    text = ""
    for name, title in SECTIONS.items():
        path = results / f"offline-{name}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
        text += f"\n## {title[0].upper()}{title[1:]}\n\n{f'{versions}.' if versions else ''}\n\n"
        text += "\n".join(TABLES[name](found["figures"])) + "\n"
    return HEAD + text.replace("\n\n\n\n", "\n\n") if text else ""

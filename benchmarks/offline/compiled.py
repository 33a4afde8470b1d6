"""Registers, spills and shared memory of every launch of the catalogue, compiled ahead of time for every target.

A rise fails where a multiprocessor then holds fewer warps, for which registers and shared memory count alike; a spill
always fails. The figures hold for one version of Triton, whose wheel brings the assemblers.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor

from benchmarks.offline.occupancy import resident_warps
from benchmarks.offline.section import Figures, Line, Section, Words
from benchmarks.options import asked
from liger import interpret
from liger.aot import Report, compile_launch
from liger.device import PRESETS
from liger.launch import Launch
from liger_triton.catalogue import catalogue


def figures(launch: Launch, report: Report) -> list[int]:
    """What is held: warps of a program, registers of a thread, shared memory of a program, bytes that are spilt."""
    return [launch.num_warps, report.registers, report.shared_bytes, report.spill_bytes]


def _compiled(target: str, names: Collection[str]) -> dict[str, list[int]]:
    device = PRESETS[target]
    return {
        entry.name: figures(entry.launch, compile_launch(entry.launch, device))
        for entry in _catalogue(device)
        if entry.name in names
    }


_catalogue = functools.cache(catalogue)


def measure(words: Words) -> Figures:
    """By the launch's name, the figures for every target; compiled by as many processes as there are cores."""
    found: dict[str, dict[str, list[int]]] = {}
    parts = []
    for target, device in PRESETS.items():
        names = [entry.name for entry in _catalogue(device) if asked(entry.name, words)]
        parts += [(target, names[i : i + 16]) for i in range(0, len(names), 16)]
    if not parts:
        return {}
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for (target, _), of_part in zip(parts, pool.map(_compiled, *zip(*parts, strict=True)), strict=True):
            for name, line in of_part.items():
                found.setdefault(name, {})[target] = line
    return dict(found)


def complain(now: Line, then: Line) -> list[str]:
    """About spills, fewer resident warps, and targets on one side only."""
    said = []
    for target in sorted(now.keys() | then.keys()):
        if target not in now or target not in then:
            said.append(f"{target}: {'new' if target in now else 'gone'}")
            continue
        spilt = now[target][3]
        if spilt:
            said.append(f"{target}: spills {spilt} bytes")
        here, before = (resident_warps(PRESETS[target], *line[target][:3]) for line in (now, then))
        if here < before:
            said.append(
                f"{target}: {here} warps per multiprocessor instead of {before}, by {_words(now[target])} "
                f"instead of {_words(then[target])}"
            )
    return said


def _words(line: list[int]) -> str:
    return f"{line[0]} warps of {line[1]} registers and {line[2]:,} bytes of shared memory"


def show(name: str, line: Line) -> str:
    """For every target, registers and resident warps, and what is spilt."""
    parts = []
    for target, (warps, registers, shared, spilt) in line.items():
        resident = resident_warps(PRESETS[target], warps, registers, shared)
        parts.append(f"{target} {registers:3d}/{resident:2d}" + (f" spills {spilt}" if spilt else ""))
    return f"{name:72s} " + "  ".join(parts)


def _missing() -> str:
    return "this process interprets kernels (TRITON_INTERPRET=1)" if interpret.enabled() else ""


SECTION = Section(
    name="compiled",
    title="Registers of a thread / warps that a multiprocessor holds, for every target",
    measure=measure,
    complain=complain,
    show=show,
    packages=("triton",),
    missing=_missing,
)

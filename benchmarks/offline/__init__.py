"""`python -m benchmarks offline`: what can be said of speed and memory without a GPU, and held.

Every section has figures in results/offline-SECTION.json, one line per name; a figure that grew fails, until `--write`
says that it was meant. `python -m benchmarks offline compiled norm --write` renews the names of one section that have
"norm" in them, which takes seconds where all of them take minutes.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from benchmarks.offline.section import Outcome, Section, compare
from benchmarks.rows import ROOT

SECTIONS = {
    "traffic": "bytes of every call of the catalogue, by the formulas of its launches",
    "peaks": "memory of every call of the catalogue and of the chunked losses, planned by torch",
    "counted": "bytes of small calls, counted in the interpreter",
    "compiled": "registers, spills and shared memory of every launch, for every target",
    "xla": "memory and kernels of JAX programs, compiled by XLA for an H200",
}
"""Those that take seconds come first."""

SKIPPED = 3
"""The exit status of a command that could do nothing here."""

# The cases that are counted, and those that XLA compiles, are the tests'. At the end of the path they hide nothing.
sys.path.append(str(ROOT / "tests" / "support"))


def named(name: str) -> Section:
    """The section of this name. Each is imported by itself: one needs torch, another JAX."""
    found: Section = importlib.import_module(f"benchmarks.offline.{name}").SECTION
    return found


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which sections, which names, and whether to keep what is found."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="SECTION|WORD",
        help=f"of {', '.join(SECTIONS)}, those to look at (all); and names with one of these words in them (all)",
    )
    parser.add_argument("--write", action="store_true", help="keep the figures")


def run(options: argparse.Namespace) -> int:
    """Print the figures, and compare them with those held.

    The exit status is 1 if something grew, and SKIPPED if nothing could be compared.
    """
    names = [word for word in options.words if word in SECTIONS] or list(SECTIONS)
    words = [word for word in options.words if word not in SECTIONS]
    outcomes = {name: compare(named(name), words, options.write) for name in names}
    if set(outcomes.values()) == {Outcome.NAMELESS}:  # a gate that compares nothing must not pass
        raise SystemExit(f"No name has {' or '.join(words)} in it; without a word, all names are printed.")
    skipped = [name for name, outcome in outcomes.items() if outcome is Outcome.SKIPPED]
    if skipped:
        reasons = "; ".join(f"{name}: {named(name).skipped(options.write)}" for name in skipped)
        print(f"\n{len(skipped)} of {len(names)} sections skipped: {reasons}")
    if Outcome.GREW in outcomes.values():
        return 1
    return SKIPPED if Outcome.FINE not in outcomes.values() else 0

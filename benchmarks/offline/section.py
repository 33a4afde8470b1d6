"""One kind of figures that are held: how they are found, kept and compared."""

from __future__ import annotations

import dataclasses
import enum
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.options import asked
from benchmarks.rows import RESULTS, ROOT

Line = Mapping[str, Any]
"""The figures of one name."""

Figures = dict[str, Line]

Words = Sequence[str]
"""Only names with one of these in them; all names where there are none."""


@dataclasses.dataclass(frozen=True)
class Section:
    """One kind of figures.

    Attributes:
        name: on the command line and in the file's name.
        title: what the figures are.
        measure: finds the figures of the names asked for.
        complain: what is wrong with a name's figures, given those held.
        show: one line of the table.
        packages: the figures hold for these versions of these packages alone.
        missing: why they cannot be found here; empty where they can.
    """

    name: str
    title: str
    measure: Callable[[Words], Figures]
    complain: Callable[[Line, Line], list[str]]
    show: Callable[[str, Line], str]
    packages: tuple[str, ...] = ()
    missing: Callable[[], str] = lambda: ""

    @property
    def path(self) -> Path:
        """Where the figures are held."""
        return RESULTS / f"offline-{self.name}.json"

    def versions(self) -> dict[str, str]:
        """Of the packages that the figures depend on, as installed."""
        return {package: importlib.metadata.version(package) for package in self.packages}

    def versions_held(self) -> dict[str, str]:
        """Of the packages that the figures which are held were found with."""
        found: dict[str, str] = self._read()["versions"]
        return found

    def held(self) -> Figures:
        """The figures that are held; none where nothing is."""
        figures: Figures = self._read()["figures"]
        return figures

    def skipped(self, write: bool = False) -> str:
        """Why nothing can be compared here, or written, and what to do; empty where it can."""
        reason = self.missing()
        if reason or write:
            return reason
        held, here = self.versions_held(), self.versions()
        if held == here or not held:
            return ""
        packages = " ".join(f"{name}=={version}" for name, version in held.items())
        return (
            f"held for {held}, and this is {here}; compare with `pip install {packages}` (constraints.txt), or hold "
            f"the figures of these versions: `python -m benchmarks offline {self.name} --write`"
        )

    def complaints(self, found: Figures, words: Words = ()) -> list[str]:
        """What grew, and which of the names asked for are on one side only."""
        held = {name: line for name, line in self.held().items() if asked(name, words)}
        said = []
        for name in sorted(found.keys() | held.keys()):
            if name in found and name in held:
                said += [f"{name}: {text}" for text in self.complain(found[name], held[name])]
            else:
                side = "new" if name in found else "gone"
                said.append(f"{name}: {side}; python -m benchmarks offline {self.name} --write")
        return said

    def write(self, found: Figures, words: Words = ()) -> None:
        """Keep the figures, one line per name in the order of the names, so that changes of several hands merge."""
        if not self.missing() and self.skipped():
            kept: Figures = {}  # of other versions
        else:
            kept = {name: line for name, line in self.held().items() if not asked(name, words)}
        lines = ",\n".join(
            f"    {json.dumps(name)}: {json.dumps(line)}" for name, line in sorted((kept | found).items())
        )
        text = f'{{\n  "versions": {json.dumps(self.versions())},\n  "figures": {{\n{lines}\n  }}\n}}\n'
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(text)

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {"versions": {}, "figures": {}}
        found: dict[str, Any] = json.loads(self.path.read_text())
        return found


class Outcome(enum.Enum):
    """What came of comparing a section."""

    FINE = "nothing grew"
    GREW = "something grew"
    SKIPPED = "skipped"
    NAMELESS = "no such name"


def compare(section: Section, words: Words, write: bool) -> Outcome:
    """Print a section's figures and compare them with those held, or keep them."""
    print(f"\n{section.title}")
    if reason := section.skipped(write):
        print(f"skipped: {reason}")
        return Outcome.SKIPPED
    found = section.measure(words)
    if words and not found and not any(asked(name, words) for name in section.held()):
        print(Outcome.NAMELESS.value)
        return Outcome.NAMELESS
    for name, line in sorted(found.items()):
        print(section.show(name, line))
    if write:
        section.write(found, words)
        print(f"{len(found)} kept in {section.path.relative_to(ROOT)}")
        return Outcome.FINE
    said = section.complaints(found, words)
    print("\n".join(said) if said else f"{len(found)} compared: nothing grew")
    return Outcome.GREW if said else Outcome.FINE


def growth(*fields: str, slack: float = 0.0, spare: int = 0) -> Callable[[Line, Line], list[str]]:
    """Complains about every one of these fields, where a line has it, that grew.

    By no more than the share `slack` and the number `spare` together it may.
    """

    def complain(now: Line, then: Line) -> list[str]:
        return [
            f"{field} grew from {then.get(field, 0):,} to {now[field]:,}"
            for field in fields
            if field in now and now[field] > then.get(field, 0) * (1 + slack) + spare
        ]

    return complain


def elsewhere(module: str, words: Words, environment: Mapping[str, str]) -> Figures:
    """What `module`, run as a program with the words, prints last: figures, as JSON.

    In a process of its own, where variables must be set before packages are imported.
    """
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    process = subprocess.run(
        [sys.executable, "-P", "-m", module, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    if process.returncode:
        raise RuntimeError(
            f"python -m {module} ended with status {process.returncode}; see what it said above."
        )
    figures: Figures = json.loads(process.stdout.splitlines()[-1])
    return figures

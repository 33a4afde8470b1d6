"""The results of whole models: results/DEVICE/models.json, a list of sittings.

A case that is run anew has its result in the newer sitting only, so that the file can be filled by several commands and
every result still stands under the versions, the source and the date that it was measured with.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from benchmarks.models.case import Result
from benchmarks.rows import source_digest, versions


@dataclasses.dataclass(frozen=True)
class Sitting:
    """The results of one command.

    Attributes:
        device: its name.
        memory_gb: of the device, in 1e9 bytes.
        date: of the measurement.
        command: what was called.
        versions: of packages.
        source: digest of the package's source.
        rows: the results.
    """

    device: str
    memory_gb: float
    date: str
    command: str
    versions: dict[str, str]
    source: str
    rows: tuple[Result, ...]

    @property
    def is_current(self) -> bool:
        """Whether it is of the source and of the packages that are here now."""
        return self.source == source_digest() and self.versions == versions()

    def without(self, keys: Collection[tuple[Any, ...]]) -> Sitting:
        """What is left when the cases with these keys are taken out."""
        return dataclasses.replace(self, rows=tuple(row for row in self.rows if row.key not in keys))


def load(path: Path) -> list[Sitting]:
    """Every sitting that is kept in a file; none where there is no file."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())["sittings"]
    return [Sitting(**each | {"rows": tuple(map(Result.from_json, each["rows"]))}) for each in found]


def save(path: Path, sittings: Sequence[Sitting]) -> None:
    """Write them, one result per line, so that a change shows as the lines that changed."""
    texts = []
    for sitting in sittings:
        head = {f.name: getattr(sitting, f.name) for f in dataclasses.fields(sitting) if f.name != "rows"}
        rows = ",\n".join("      " + row.to_json() for row in sitting.rows)
        texts.append(json.dumps(head, indent=2).removesuffix("\n}") + ',\n  "rows": [\n' + rows + "\n  ]\n}")
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".part")  # a lease of a GPU may end in between
    written.write_text('{"sittings": [\n' + ",\n".join(texts) + "\n]}\n")
    written.replace(path)


def add(path: Path, before: Sequence[Sitting], sitting: Sitting) -> None:
    """Write a sitting after those of `before`, which lose the cases that it has."""
    keys = {row.key for row in sitting.rows}
    left = (older.without(keys) for older in before)
    save(path, [*(older for older in left if older.rows), sitting])

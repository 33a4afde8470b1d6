"""`python -m benchmarks merge FOLDER ...`: add what was measured into other folders of results.

On a machine with several GPUs, commands may run beside each other, each with its CUDA_VISIBLE_DEVICES and an `--output`
of its own; two of them would overwrite each other's rows in one folder. Folders are added in their order: an entry that
several have is the last one's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.memory_page import read_peak
from benchmarks.models.case import Result
from benchmarks.options import add_output
from benchmarks.rows import keep, load, read_row


def arguments(parser: argparse.ArgumentParser) -> None:
    """From where, and where to."""
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="the --output of other commands"
    )
    add_output(parser)


def add(source: Path, target: Path) -> None:
    """Add the runs of one file to another one."""
    read = {"memory": read_peak, "models": Result.from_json}.get(source.stem, read_row)
    for run in load(source, read):
        keep(target, run, load(target, read))


def run(options: argparse.Namespace) -> int:
    """Add every file of the folders."""
    for folder in options.folders:
        found = sorted(folder.glob("*/*.json"))
        if not found:
            raise SystemExit(f"No results in {folder}: there is no DEVICE/NAME.json.")
        for path in found:
            target = options.output / path.relative_to(folder)
            add(path, target)
            print(target)
    return 0

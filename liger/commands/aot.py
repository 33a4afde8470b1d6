"""`python -m liger aot`: what the kernels compile to, for GPUs that need not be present."""

from __future__ import annotations

import argparse

from liger import interpret
from liger.device import PRESETS
from liger.memory_access import Widths

HELP = "compile the kernels for GPUs that need not be present"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which launches, and for which GPU."""
    parser.add_argument("--target", choices=PRESETS, help="one GPU instead of all")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only launches whose name contains this")


def run(options: argparse.Namespace) -> int:
    """Compile the catalogue and print what each launch uses; the exit status is 1 if one spills or none matched."""
    if interpret.enabled():
        raise SystemExit("the kernels cannot be compiled under TRITON_INTERPRET=1; unset it")
    from liger.aot import compile_launch
    from liger_triton.catalogue import catalogue

    print(
        "registers, spilled bytes, shared bytes, and the fewest bytes at a time that each array is accessed with"
    )
    rows = spills = 0
    for target in [options.target] if options.target else PRESETS:
        for entry in catalogue(PRESETS[target]):
            if options.filter not in entry.name:
                continue
            report = compile_launch(entry.launch, PRESETS[target])
            rows += 1
            spills += report.spill_bytes > 0
            print(
                f"{target:7}{entry.name:66}{report.registers:4}{report.spill_bytes:6}{report.shared_bytes:8}"
                f"  {_narrowest(report.loads)} -> {_narrowest(report.stores)}",
                flush=True,
            )
    print(f"{rows} launches, {spills} with spills")
    return 1 if spills or not rows else 0


def _narrowest(widths: Widths) -> str:
    return " ".join(f"{name.removesuffix('_ptr')}:{min(table)}" for name, table in widths.items())

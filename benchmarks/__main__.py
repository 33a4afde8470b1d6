"""`python -m benchmarks COMMAND`: see each command's --help."""

from __future__ import annotations

import argparse
import importlib
import sys

COMMANDS = {
    "run": "measure every op beside its peers, on the GPU at hand",
    "offline": "bytes that every op moves, without a GPU, compared with those held",
    "report": "tables and plots of the rows that are kept",
}


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        importlib.import_module(f"benchmarks.{name}").arguments(commands.add_parser(name, help=text))
    options = parser.parse_args()
    status: int = importlib.import_module(f"benchmarks.{options.command}").run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())

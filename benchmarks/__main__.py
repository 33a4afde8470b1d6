"""`python -m benchmarks COMMAND`: see each command's --help.

`python -m benchmarks all` is the one command that fills every table. A command registers by one line in
`benchmarks.commands.COMMANDS`: its name, what it does, and `parts`, the arguments of each process that `all` starts for
it (of at most ten minutes). Its module is benchmarks/NAME.py, unless the line says otherwise, with two functions:

    def arguments(parser: argparse.ArgumentParser) -> None: ...
    def run(options: argparse.Namespace) -> int: ...  # the exit status: 0 if all is well

What it measures goes to results/DEVICE/NAME.json. Rows of `benchmarks.rows` are shown by the report as they are; what
has another form has a page of its own in `benchmarks.report.PAGES`, which needs neither torch nor JAX.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from benchmarks.commands import COMMANDS, module_of


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    for name, command in COMMANDS.items():
        under = commands.add_parser(name, help=command.text, description=command.text, allow_abbrev=False)
        if name == asked:  # the others are not imported: one may need what is not installed
            importlib.import_module(module_of(name)).arguments(under)
    options = parser.parse_args()
    status: int = importlib.import_module(module_of(options.command)).run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())

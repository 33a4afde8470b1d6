"""python -m liger: what is installed, what there is, and what the kernels compile to.

python -m liger info
python -m liger ops [--filter rms_norm]
python -m liger models [--sample] [--family llama] [--write docs/models.md]
python -m liger aot [--target sm_90] [--filter rms_norm]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from liger.commands import aot, info, models, ops

COMMANDS = {"info": info, "ops": ops, "models": models, "aot": aot}


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m liger", description="One set of kernels for PyTorch and JAX."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        command.arguments(commands.add_parser(name, help=command.HELP))
    options = parser.parse_args(arguments)
    return COMMANDS[options.command].run(options)


if __name__ == "__main__":
    sys.exit(main())

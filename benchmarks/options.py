"""What command lines have in common: words that choose by name, and where results go."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.rows import RESULTS


def asked(name: str, words: Sequence[str]) -> bool:
    """Whether a name has one of the words in it; without words, every name is asked for."""
    return not words or any(word in name for word in words)


def check(words: Iterable[str], names: Iterable[str], what: str) -> None:
    """See that every word is in a name, since one that is in none would choose nothing, or everything, silently.

    Raises:
        SystemExit: a word is in no name; the text has the names.
    """
    found = list(dict.fromkeys(names))
    for word in words:
        if not any(word in name for name in found):
            raise SystemExit(f"No {what} has {word!r} in its name; there are:\n  " + "\n  ".join(found))


def add_output(parser: argparse.ArgumentParser) -> None:
    """--output."""
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results, with one per device")


def add_resume(parser: argparse.ArgumentParser) -> None:
    """--resume."""
    text = "leave out what was measured from today's code and versions, but for what failed or whose copy drifted"
    parser.add_argument("--resume", action="store_true", help=text)

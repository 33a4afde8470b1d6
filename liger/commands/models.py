"""`python -m liger models`: every family of the installed transformers, patched and compared with itself.

What stands in docs/models.md is written by this command.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

HELP = "the Hugging Face families: what is patched in each, and whether it computes the same"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which families, and where to."""
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--family", default=[], nargs="+", metavar="NAME", help="only these (a model_type each)"
    )
    chosen.add_argument("--sample", action="store_true", help="only some that have all forms between them")
    chosen.add_argument(
        "--write", type=Path, metavar="PATH", help="also write the table of all families there"
    )


def run(options: argparse.Namespace) -> int:
    """Print the families; the exit status is 1 if one does not compute the same, or is not there."""
    try:
        survey = importlib.import_module("liger_torch.hf.survey")
    except ImportError as error:
        print(f"{error.name or error} is not installed; the families need torch and transformers")
        return 1
    names = survey.SAMPLE if options.sample else options.family
    chosen = [family for family in survey.families() if not names or family.name in names]
    unknown = set(names) - {family.name for family in chosen}
    setting = survey.Setting.here()
    print(setting)
    rows = []
    for row in survey.rows(chosen):
        rows.append(row)
        print(survey.line(row), flush=True)
    print(f"{len(rows)} families: {survey.counts(rows)}")
    if unknown:
        print(f"not in this transformers: {', '.join(sorted(unknown))}")
    if options.write is not None:
        before = options.write.read_text() if options.write.exists() else ""
        rows.sort(key=lambda row: chosen.index(row.family))
        options.write.write_text(survey.page(rows, setting, before))
    failed = any(row.outcome in survey.BAD for row in rows)
    # The sample is the same for every transformers, of which an older one lacks some.
    return 1 if failed or (unknown and not options.sample) or not rows else 0

"""The survey in words: lines for the terminal, and a page that keeps the results of several versions."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
import transformers

from liger.interpret import enabled
from liger_torch.hf.report import Entry
from liger_torch.hf.survey.compare import GRADIENTS, LOSS, OUTCOMES, Row


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a survey was made with.

    Attributes:
        transformers: its version.
        torch: its version, without the build.
        kernels: what computed the ops.
    """

    transformers: str
    torch: str
    kernels: str

    @classmethod
    def here(cls) -> Setting:
        """That of this process."""
        kernels = "kernels in Triton's interpreter" if enabled() else "the ops' references"
        return cls(transformers.__version__, torch.__version__.partition("+")[0], kernels)

    def __str__(self) -> str:
        return f"transformers {self.transformers}, torch {self.torch}, {self.kernels}"


def line(row: Row) -> str:
    """A row for the terminal."""
    off = "" if row.loss != row.loss else f" (loss {row.loss:.1e}, gradients {row.gradients:.1e})"
    texts = [f"{row.family.name} {row.family.model}: {row.outcome}{off}"]
    texts += [row.reason] if row.reason else []
    if row.report is not None:
        texts += [f"patched: {patched(row)}"] + [f"left: {text}" for text in left(row)]
    if row.compared:
        texts += [f"compared: {', '.join(row.compared)}"]
    return "\n  ".join(texts)


def patched(row: Row) -> str:
    """How many modules of which form."""
    forms: Counter[str] = Counter()
    for entry in row.report.patched if row.report is not None else ():
        forms[entry.form] += entry.count
    return ", ".join(f"{form} ×{n}" if n > 1 else form for form, n in forms.items()) or "nothing"


def left(row: Row) -> tuple[str, ...]:
    """What was left alone, and why."""
    return tuple(_left(entry) for entry in row.report.left) if row.report is not None else ()


def _left(entry: Entry) -> str:
    return f"{entry.name}{f' ×{entry.count}' if entry.count > 1 else ''}: {entry.reason}"


def counts(rows: Iterable[Row]) -> str:
    """How many came out how."""
    found = Counter(row.outcome for row in rows)
    return ", ".join(f"{found[outcome]} {outcome}" for outcome in OUTCOMES if found[outcome]) or "no family"


# ---- the page

_HEAD = f"""# Hugging Face models

What `apply_liger_kernel` makes of every causal language model, and of every model of images and text, that
transformers has. Of each family a small model is built from the family's own configuration, with random weights. Its
loss for a text and all gradients are computed, as it is and patched, in float32 on a CPU. Equal means: the loss within
{LOSS:g} and each gradient within {GRADIENTS:g}, relative. A part that looks at images is compared likewise where it can
be run by itself; it then stands under "Compared". A family that is not built, or not compared, is not for that reason
unsupported: only the small model lacks something.

This page is what `python -m liger models --write docs/models.md` writes: the table below for the transformers that is
installed, and a line among the versions.
"""
_VERSIONS = "## Versions"
_VERSION = re.compile(r"^\| (\d\S*) \|.*$", re.MULTILINE)


def page(rows: Sequence[Row], setting: Setting, before: str = "") -> str:
    """The page; the other versions' lines are kept from what it was before."""
    known = {found[1]: found[0] for found in _VERSION.finditer(before.partition(_VERSIONS)[2])}
    found = Counter(row.outcome for row in rows)
    known[setting.transformers] = _cells(
        setting.transformers, setting.torch, *map(found.__getitem__, OUTCOMES)
    )
    versions = [known[version] for version in sorted(known, key=_numbers)]
    return "\n".join(
        [
            _HEAD,
            _VERSIONS,
            "",
            *_header("transformers", "torch", *OUTCOMES),
            *versions,
            "",
            f"## transformers {setting.transformers}",
            "",
            *_header("Family", "Model", "Patched", "Left alone", "Compared", "Outcome"),
            *map(_row, rows),
            "",
        ]
    )


def _row(row: Row) -> str:
    outcome = f"{row.outcome}: {row.reason}" if row.reason else row.outcome
    what = ("", "") if row.report is None else (patched(row), "<br>".join(left(row)))
    return _cells(row.family.name, f"`{row.family.model}`", *what, ", ".join(row.compared), outcome)


def _header(*titles: str) -> Iterator[str]:
    yield _cells(*titles)
    yield _cells(*("---" for _ in titles))


def _cells(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))

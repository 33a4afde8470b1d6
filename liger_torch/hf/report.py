"""What was patched, what was not, and why."""

from __future__ import annotations

import dataclasses
import logging
import weakref
from collections import Counter

_logger = logging.getLogger("liger_torch.hf")
_said: weakref.WeakKeyDictionary[object, set[str]] = weakref.WeakKeyDictionary()


def warn_once(owner: object, message: str) -> None:
    """Log a warning, the first time only for this owner: a model, its record or a class."""
    said = _said.setdefault(owner, set())
    if message not in said:
        said.add(message)
        _logger.warning(message)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a report.

    Attributes:
        kind: "norm", "mlp", "experts", "rope" or "loss".
        name: the class or function.
        count: how many modules of the class.
        form: what it was recognised as, or the closest form.
        reason: why it was left alone; empty where it was patched.
    """

    kind: str
    name: str
    count: int
    form: str
    reason: str = ""

    def __str__(self) -> str:
        line = f"{self.kind}: {self.name} x{self.count}"
        return f"{line} left alone: {self.reason}" if self.reason else f"{line} -> {self.form}"


@dataclasses.dataclass(frozen=True)
class PatchReport:
    """The outcome of `apply_liger_kernel`, or what it would be; str() gives one line per class.

    Attributes:
        model: the model's class.
        entries: everything that was looked at.
    """

    model: str
    entries: tuple[Entry, ...]

    @property
    def patched(self) -> tuple[Entry, ...]:
        """What runs on kernels."""
        return tuple(entry for entry in self.entries if not entry.reason)

    @property
    def left(self) -> tuple[Entry, ...]:
        """What was asked for, but stayed as it was."""
        return tuple(entry for entry in self.entries if entry.reason)

    @property
    def counts(self) -> dict[str, int]:
        """How many modules were patched, by kind."""
        found: Counter[str] = Counter()
        for entry in self.patched:
            found[entry.kind] += entry.count
        return dict(found)

    def __str__(self) -> str:
        return "\n".join([self.model, *(f"  {entry}" for entry in self.entries or ("nothing recognised",))])


class UnrecognisedModuleError(RuntimeError):
    """`strict=True`, and something was not recognised. Nothing has been changed."""

    def __init__(self, report: PatchReport) -> None:
        self.report = report
        super().__init__(
            f"{report.model}: with strict=True everything must be recognised, but "
            + ("; ".join(str(entry) for entry in report.left) or "nothing was")
            + ". Switch the parts off by name (rope=False, ...) or leave strict out to patch the rest."
        )

"""What the ops are tested on, one file per family."""

from __future__ import annotations

from cases import gates, losses, norms, position
from cases.case import DTYPES, IGNORED, Case, labels, normal, positive, together

CASES: tuple[Case, ...] = (*norms.cases(), *position.cases(), *gates.cases(), *losses.cases())

__all__ = ["CASES", "DTYPES", "IGNORED", "Case", "labels", "normal", "positive", "together"]

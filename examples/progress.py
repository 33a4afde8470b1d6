"""Progress of a run: a line that a terminal sees change, or a few lines where there is none."""

from __future__ import annotations

import sys

LINES_PER_RUN = 5
"""Progress lines of a run where the output is not a terminal."""


class Progress:
    """Tells of the steps of one run."""

    def __init__(self, name: str, steps: int) -> None:
        self.name = name
        self.steps = steps
        self.terminal = sys.stdout.isatty()
        if self.terminal:
            print(f"{name}: starting", end="", flush=True)

    def show(self, step: int, **values: float) -> None:
        """Tell of a step, counted from 1."""
        told = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        text = f"{self.name}: step {step} of {self.steps}, {told}"
        if self.terminal:
            print(f"\r\033[K{text}", end="", flush=True)
        elif step in (1, self.steps) or step % max(1, self.steps // LINES_PER_RUN) == 0:
            print(text, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self.terminal:
            print("\r\033[K", end="", flush=True)

"""What a process that trains tells the demo: lines of JSON on its standard output."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from examples.settings import Settings


@dataclasses.dataclass(frozen=True)
class Job:
    """One run, as its process reads it from the command line and the demo's working folder."""

    settings: Settings
    model: Path
    batches: np.ndarray
    liger: bool


def read_job() -> Job:
    """The job that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--liger", action="store_true")
    options = parser.parse_args()
    folder: Path = options.folder
    return Job(
        Settings.load(folder / "settings.json"),
        folder / "model",
        np.load(folder / "batches.npy"),
        options.liger,
    )


def train(job: Job, step: Callable[[np.ndarray], float]) -> dict[str, Any]:
    """Run `step` on every batch, tell of each loss, and return the losses and the speed.

    A step returns its loss as a float, so it has ended when its time is taken. The speed is that of the median step:
    other work on the machine then weighs little.
    """
    losses, seconds = [], []
    for index, batch in enumerate(job.batches):
        start = time.perf_counter()
        losses.append(step(batch))
        seconds.append(time.perf_counter() - start)
        tell(step=index + 1, loss=losses[-1])
    timed = statistics.median(seconds[job.settings.untimed :])
    return {"losses": losses, "tokens_per_second": job.settings.tokens_per_step / timed}


def tell(**message: Any) -> None:
    """Write a line."""
    print(json.dumps(message), flush=True)


def understand(line: str) -> dict[str, Any] | None:
    """What a line tells; None for a line that some library has printed."""
    if not line.startswith("{"):
        return None
    try:
        message: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return None
    return message

"""Families one by one, each in a process of its own.

What a model took is given back with its process, and a family that crashes or does not end takes nothing with it. The
processes are forked from one that has imported torch and transformers already.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import resource
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from liger_torch.hf.survey import compare, tiny

SECONDS = 120
"""Of processor time within which a family must be done."""

PATIENCE = 900.0
"""Seconds within which it must be done however busy the machine is."""

MEMORY = 1.5 * 2**30
"""Bytes that a process may take."""

AT_A_TIME = 2


def rows(families: Sequence[tiny.Family], seconds: float = PATIENCE) -> Iterator[compare.Row]:
    """The families' rows, in the order in which they are done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([compare.__name__])
    waiting = list(reversed(families))
    running: list[_Process] = []
    while waiting or running:
        while waiting and len(running) < min(AT_A_TIME, os.cpu_count() or 1):
            running.append(_Process(context, waiting.pop(), seconds))
        ends = max(0.0, min(process.deadline for process in running) - time.monotonic())
        multiprocessing.connection.wait([process.results for process in running], ends)
        for process in list(running):
            row = process.row()
            if row is not None:
                running.remove(process)
                yield row


class _Process:
    """A family at work."""

    def __init__(self, context: Any, family: tiny.Family, seconds: float) -> None:
        self.family = family
        self.seconds = seconds
        self.results, sending = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(sending, family), daemon=True)
        self._process.start()
        sending.close()
        self.deadline = time.monotonic() + seconds

    def row(self) -> compare.Row | None:
        """The row; None while the family is at work."""
        row = None
        if self.results.poll():
            try:
                row = self.results.recv()
            except EOFError:
                self._process.join()
                reason = f"its process ended with exit code {self._process.exitcode}"
                row = compare.Row(self.family, compare.ENDED, reason)
        elif time.monotonic() >= self.deadline:
            self._process.kill()
            row = compare.Row(self.family, compare.ENDED, f"not done in {self.seconds:g} s")
        if row is not None:
            self._process.join()
            self._process.close()
            self.results.close()
        return row


def _work(results: Any, family: tiny.Family) -> None:
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS,) * 2)
    resource.setrlimit(resource.RLIMIT_DATA, (int(MEMORY),) * 2)
    results.send(compare.survey(family))

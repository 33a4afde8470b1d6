"""Cases one after the other, each in a fresh process that has its imports behind it when its turn comes.

A fresh process, because liger-kernel changes classes for the whole process, and because what an earlier case has
allocated, compiled or fragmented must not show.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks.models.case import Case, Result

ROOT = Path(__file__).parent.parent.parent
AHEAD = 2
"""Processes that import while another one has the device."""


MARK = "@result "
"""How a process's line with its result begins."""

NOT_RUN = "not run: the time was up"
LATE = "failed: no result within"


class Worker:
    """A process that waits to be told."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.models.worker", json.dumps(dataclasses.asdict(case))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )

    def result(self, limit: float) -> tuple[Result, dict[str, Any]]:
        """Run the case; the result and the machine, of which nothing is known where the process was ended."""
        try:
            output, _ = self.process.communicate("go\n", timeout=limit)
        except subprocess.TimeoutExpired:
            self.end()
            return Result(self.case, note=f"{LATE} {limit:.0f} s"), {}
        for line in reversed(output.splitlines()):
            if line.startswith(MARK):
                found = json.loads(line.removeprefix(MARK))
                result = Result.from_json(found["result"])
                if result.failed:
                    sys.stderr.write(self.said())
                return result, found["machine"]
        said = self.said()
        sys.stderr.write(said)
        last = said.strip().splitlines()[-1][:200] if said.strip() else ""
        return Result(self.case, note=f"failed: exit status {self.process.returncode}: {last}"), {}

    def said(self) -> str:
        """The end of what it wrote to its standard error."""
        self.errors.seek(0)
        return self.errors.read()[-3000:]

    def end(self) -> None:
        """Kill it and the processes it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def machine() -> dict[str, Any]:
    """What the results will be of, asked in a process of its own, so that this one leaves the device alone."""
    code = "import json; from benchmarks.models.worker import machine; print(json.dumps(machine()))"
    output = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True
    )
    found: dict[str, Any] = json.loads(output.stdout.splitlines()[-1])
    return found


def results(cases: Sequence[Case], limit: float, seconds: float) -> Iterator[tuple[Result, dict[str, Any]]]:
    """The results of the cases in turn.

    Args:
        cases: what to run.
        limit: seconds after which a case is ended.
        seconds: after so many no case is begun, and the one that runs is ended.
    """
    start = time.perf_counter()
    started: list[Worker] = []
    try:
        for i in range(len(cases)):
            started += map(Worker, cases[len(started) : i + 1 + AHEAD])
            worker, left = started[i], seconds - (time.perf_counter() - start)
            if left <= 0:
                yield Result(worker.case, note=NOT_RUN), {}
                continue
            result, machine = worker.result(min(limit, left))
            late = left < limit and result.note.startswith(LATE)
            yield (Result(worker.case, note=NOT_RUN) if late else result), machine
    finally:  # where this process is told to end, too
        for worker in started:
            if worker.process.poll() is None:
                worker.end()

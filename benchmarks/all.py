"""`python -m benchmarks all`: every command that measures, each part in a process of its own, then the report.

A part that fails or takes too long does not stop the rest; what failed is told at the end, and what each one printed is
in build/benchmarks. Parts keep what they have measured as they go, and `--resume` goes on with what is missing or no
longer holds (but for `host`, which takes a minute), so that the whole can be done in several sittings. `--list` prints
the command of each part, to be run one by one.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.commands import COMMANDS, Command
from benchmarks.gpu import has_gpu
from benchmarks.offline import SKIPPED
from benchmarks.options import add_resume

LOGS = Path(__file__).parent.parent / "build" / "benchmarks"
LEFT_OUT = "left out"
RESUMABLE = ("run", "memory", "models", "jax")


@dataclasses.dataclass(frozen=True)
class Part:
    """One process."""

    name: str
    arguments: tuple[str, ...]
    command: Command

    @property
    def words(self) -> tuple[str, ...]:
        """What comes after `python -m benchmarks`."""
        return (self.name, *self.arguments)

    @property
    def log(self) -> Path:
        """Where what it printed is kept."""
        return LOGS / f"{'-'.join(w.lstrip('-') for w in self.words)}.log".replace("/", "-")


def parts(words: list[str], resume: bool) -> Iterator[Part]:
    """The processes, or those of which a word of the command is in `words`."""
    for name, command in COMMANDS.items():
        for arguments in command.parts:
            if words and not set(words) & {name, *arguments}:
                continue
            more = ("--resume",) if resume and name in RESUMABLE else ()
            yield Part(name, (*arguments, *more), command)


def execute(part: Part) -> str:
    """Run a part, showing what it prints; '' or what went wrong."""
    LOGS.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with part.log.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "benchmarks", *part.words],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        shown, late = 0, False
        try:
            while process.poll() is None and time.monotonic() - started < part.command.seconds:
                time.sleep(0.5)
                shown = _show(part.log, shown)
            late = process.poll() is None
        finally:  # where this process is told to end, too
            _end(process)
    _show(part.log, shown)
    if late:
        return f"took more than {part.command.seconds:.0f} s; what it measured until then is kept"
    if process.returncode == 0:
        return ""
    last = part.log.read_text(errors="replace").strip().splitlines()[-1:]
    if process.returncode == SKIPPED:
        return f"{LEFT_OUT}: {' '.join(last)}"
    return f"exit status {process.returncode}: {' '.join(last)[:160]}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs, with those that it started, which would keep the GPU busy."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _show(log: Path, shown: int) -> int:
    with log.open("rb") as file:
        file.seek(shown)
        new = file.read()
    sys.stdout.write(new.decode(errors="replace"))
    sys.stdout.flush()
    return shown + len(new)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which parts."""
    parser.add_argument("words", nargs="*", metavar="WORD", help="only these commands, or groups of `run`")
    parser.add_argument("--list", action="store_true", help="print the command of each part, and run none")
    add_resume(parser)


def run(options: argparse.Namespace) -> int:
    """Run the parts; the exit status is 1 if one failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part that runs is ended
    known = {word for part in parts([], False) for word in part.words}
    if unknown := sorted(set(options.words) - known):
        raise SystemExit(
            f"No part has the word {unknown[0]!r}; `python -m benchmarks all --list` prints the parts."
        )
    chosen = list(parts(options.words, options.resume))
    if options.list:
        for part in chosen:
            needs = "a GPU, " if part.command.gpu else ""
            print(
                f"python -m benchmarks {shlex.join(part.words):45s} # {needs}at most {part.command.seconds:.0f} s"
            )
        return 0
    table: list[tuple[str, float, str]] = []
    for part in chosen:
        name = " ".join(part.words)
        print(f"\n=== {name}", flush=True)
        started = time.monotonic()
        said = f"{LEFT_OUT}: it needs a GPU" if part.command.gpu and not has_gpu() else execute(part)
        table.append((name, time.monotonic() - started, said))
    print(f"\n{'part':40s} {'seconds':>8s}")
    for name, seconds, said in table:
        print(f"{name:40s} {seconds:8.0f} {said or 'done'}")
    left_out = [name for name, _, said in table if said.startswith(LEFT_OUT)]
    failed = [name for name, _, said in table if said and name not in left_out]
    print(f"{len(table)} parts, {len(failed)} failed, {len(left_out)} left out; logs in {LOGS}")
    return 1 if failed else 0

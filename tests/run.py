"""Run the test groups, each in a pytest process of its own, and add up what they report.

    python tests/run.py                  every group that needs no GPU
    python tests/run.py cpu aot          these groups
    python tests/run.py --gpu            the group that needs a GPU
    python tests/run.py cpu -- -k rope   with arguments for pytest

The interpreter needs a process of its own because Triton reads TRITON_INTERPRET when it is imported. The other
groups are apart so that a crash in one leaves the others' results standing.

Two groups run at a time where there are two cores. The output of a group is printed in one piece when it ends and
can be followed in build/tests/GROUP.log meanwhile; the interpreter has three parts, interpreter-1 to -3. The last line
is `total: N passed, N failed, N skipped`; the exit status is 0 only if some test ran and none failed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "tests"

TIME_LIMIT = 35 * 60.0
"""Seconds after which a group is ended. The whole suite is meant to take 20 minutes on two cores; slow ones take twice that."""

HEARTBEAT = 60.0
"""Seconds between two lines about the groups still running."""

PYTEST_NO_TESTS = 5
"""pytest's exit status when it collected nothing."""


ON_CPU = {"JAX_PLATFORMS": "cpu"}


@functools.cache
def xla_knows(flag: str) -> bool:
    """Whether JAX starts with a flag of XLA's: they come and go with versions, and an unknown one ends the process."""
    command = [sys.executable, "-P", "-c", "import jax; jax.devices()"]
    environment = {**os.environ, **ON_CPU, "XLA_FLAGS": flag}
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


@dataclasses.dataclass(frozen=True)
class Group:
    """A folder of tests that shares one process, or a part of its files.

    Attributes:
        name: the name on the command line; the tests are in tests/NAME.
        environment: variables that the group must have.
        defaults: variables that the caller may set otherwise.
        xla_flags: flags of XLA's that it has where JAX knows them, unless the caller set XLA_FLAGS.
        parts: how many processes the group is divided among.
        part: which of them this is; each has as many files as the others, in the order of their names.
    """

    name: str
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, str] = dataclasses.field(default_factory=dict)
    xla_flags: tuple[str, ...] = ()
    parts: int = 1
    part: int = 0

    @property
    def folder(self) -> Path:
        """Where the group's tests are."""
        return ROOT / "tests" / self.name

    @property
    def label(self) -> str:
        """Its name, and which part of it this is."""
        return self.name if self.parts == 1 else f"{self.name}-{self.part + 1}"

    @property
    def paths(self) -> list[str]:
        """What pytest is given: always the folder, for conftest.py leaves out no file that is named."""
        files = sorted(self.folder.glob("test_*.py"))
        first, end = (len(files) * part // self.parts for part in (self.part, self.part + 1))
        others = [*files[:first], *files[end:]]
        folder, *ignored = (str(path.relative_to(ROOT)) for path in (self.folder, *others))
        return [folder, *(f"--ignore={path}" for path in ignored)]

    def divided(self) -> list[Group]:
        """Its parts."""
        return [dataclasses.replace(self, part=part) for part in range(self.parts)]


COMPILED_FAST = {**ON_CPU, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
"""For thousands of small programs that run once. Not where what XLA plans is looked at."""
XLA_FAST = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE")
"""Flags to the same end: together an eighth of XLA's time."""

# The longest come first, so that both cores have something to do to the end.
CPU_GROUPS = (
    Group("aot", defaults=ON_CPU),
    Group(
        "interpreter",
        environment={"TRITON_INTERPRET": "1"},
        defaults=COMPILED_FAST,
        xla_flags=XLA_FAST,
        parts=3,
    ),
    Group("cpu", defaults=COMPILED_FAST, xla_flags=XLA_FAST),
    Group("model", defaults=COMPILED_FAST, xla_flags=XLA_FAST),
)
GPU_GROUP = Group("gpu")
GROUPS = {group.name: group for group in (*CPU_GROUPS, GPU_GROUP)}


def xla_flags(group: Group) -> dict[str, str]:
    """The group's variable XLA_FLAGS, where the caller has none."""
    return {} if "XLA_FLAGS" in os.environ else {"XLA_FLAGS": " ".join(filter(xla_knows, group.xla_flags))}


@dataclasses.dataclass(frozen=True)
class Counts:
    """Tests by outcome; an error in collection, set-up or tear-down is a failure."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of one group; `note` says what its counts cannot."""

    group: Group
    counts: Counts
    seconds: float
    note: str = ""

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.group.label}: {self.counts}, {self.seconds:.0f} s{note}"


def read_report(path: Path) -> Counts | None:
    """Count the outcomes in a JUnit report; None where there is none, or only part of one."""
    try:
        cases = ElementTree.parse(path).iter("testcase")
    except (FileNotFoundError, ElementTree.ParseError):
        return None
    passed = failed = skipped = 0
    for case in cases:
        outcomes = {child.tag for child in case}
        if outcomes & {"failure", "error"}:
            failed += 1
        elif "skipped" in outcomes:
            skipped += 1
        else:
            passed += 1
    return Counts(passed, failed, skipped)


def describe_exit(status: int) -> str:
    """Name an exit status of a process as a reader would."""
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"


class Running:
    """A group's pytest process."""

    def __init__(self, group: Group, python: str, threads: int, pytest_arguments: Sequence[str]) -> None:
        """Start the process; its output goes to a log of the group."""
        self.group = group
        self.log = LOGS / f"{group.label}.log"
        self.report = LOGS / f"{group.label}.xml"
        self.report.unlink(missing_ok=True)
        environment = {
            # Tests download nothing; and two groups must not fight over the cores.
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(threads),
            "PYTHONUNBUFFERED": "1",
            **group.defaults,
            **xla_flags(group),
            **{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
            **group.environment,
        }
        # -P keeps the working folder out of sys.path: `python -m pytest` would put the checkout before the
        # installed packages, and its `kernels` before the Hub's library.
        command = [python, "-P", "-m", "pytest", "-q", *group.paths]
        command += [f"--junitxml={self.report}", *pytest_arguments]
        self.start = time.monotonic()
        with self.log.open("wb") as log:
            # A session of its own, so that ending the group also ends what its tests have started.
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self.start

    @property
    def output(self) -> str:
        """What the process has printed so far."""
        return self.log.read_text(errors="replace")

    def progress(self) -> str:
        """Name, time, and the share of tests done as pytest prints it."""
        shares = re.findall(r"\[ *(\d+%)\]", self.output)
        return f"{self.group.label} {self.seconds:.0f} s" + (f" ({shares[-1]})" if shares else "")

    def end(self) -> None:
        """End the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def poll(self) -> Result | None:
        """The result, once the process has ended or has used up its time."""
        status = self.process.poll()
        if status is None and self.seconds < TIME_LIMIT:
            return None
        seconds = self.seconds
        self.end()
        counts = read_report(self.report)
        if status is None:
            note = f"ended after {TIME_LIMIT:.0f} s"
        elif counts is None:
            note = f"no report, {describe_exit(status)}"
        else:
            note = {0: "", 1: "", PYTEST_NO_TESTS: "no tests"}.get(status, describe_exit(status))
        counts = counts or Counts()
        # A process that did not end well counts as a failure even if it could name no failed test.
        if counts.failed == 0 and (status == 1 or note not in ("", "no tests")):
            counts += Counts(failed=1)
        return Result(self.group, counts, seconds, note)


def run(groups: Iterable[Group], jobs: int, pytest_arguments: Sequence[str]) -> list[Result]:
    """Run the groups, `jobs` of them at a time, and print each one's output when it ends."""
    LOGS.mkdir(parents=True, exist_ok=True)
    waiting = [part for group in groups for part in group.divided()]
    threads = max(1, (os.cpu_count() or 1) // max(1, min(jobs, len(waiting))))
    running: list[Running] = []
    results: list[Result] = []
    spoke = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                group = waiting.pop(0)
                if not group.folder.is_dir():
                    results.append(Result(group, Counts(), 0.0, "no tests"))
                    continue
                print(f"{group.label}: started", flush=True)
                running.append(Running(group, sys.executable, threads, pytest_arguments))
            for process in list(running):
                result = process.poll()
                if result is None:
                    continue
                running.remove(process)
                results.append(result)
                print(f"\n======== {result.group.label}\n{process.output.rstrip()}\n{result}\n", flush=True)
                spoke = time.monotonic()
            if running and time.monotonic() - spoke > HEARTBEAT:
                print("running: " + ", ".join(process.progress() for process in running), flush=True)
                spoke = time.monotonic()
            if running:
                time.sleep(0.2)
    finally:
        for process in running:
            process.end()
    return results


def main(arguments: Sequence[str]) -> int:
    """Read the command line, run the groups, and return the exit status."""
    # argparse would give options that follow `--` to the list of groups.
    own, pytest_arguments = list(arguments), []
    if "--" in own:
        cut = own.index("--")
        own, pytest_arguments = own[:cut], own[cut + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"one of {', '.join(GROUPS)}")
    parser.add_argument("--gpu", action="store_true", help="run the group that needs a GPU")
    parser.add_argument(
        "--jobs", type=int, help="groups at a time (two, or one on a single core or with --gpu)"
    )
    options = parser.parse_args(own)
    unknown = sorted(set(options.groups) - set(GROUPS))
    if unknown:
        parser.error(f"unknown group {', '.join(unknown)}; choose from {', '.join(GROUPS)}")
    names = list(dict.fromkeys(options.groups)) + ([GPU_GROUP.name] if options.gpu else [])
    groups = [GROUPS[name] for name in dict.fromkeys(names)] or list(CPU_GROUPS)
    # Groups on one GPU would disturb each other's memory and times.
    jobs = options.jobs or (1 if options.gpu else min(2, os.cpu_count() or 1))

    # A runner that is told to stop ends its pytest processes as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    results = run(groups, jobs, pytest_arguments)

    print("========")
    order = list(GROUPS)
    for result in sorted(results, key=lambda result: (order.index(result.group.name), result.group.part)):
        print(result)
    total = sum((result.counts for result in results), Counts())
    nothing_ran = total.passed + total.failed == 0
    if nothing_ran:
        print("nothing ran")
    print(f"total: {total}")
    return 1 if total.failed or nothing_ran else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

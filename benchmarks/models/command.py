"""`python -m benchmarks models`: training steps of whole models beside their peers."""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.gpu import has_gpu
from benchmarks.models import pool
from benchmarks.models.case import ARMS, FLAX_ARMS, Case, Result
from benchmarks.models.shapes import CURVES, MODELS, SHAPES
from benchmarks.options import add_output, add_resume, check
from benchmarks.rows import Run, file_of, keep, load, measured_now

FLAX_SEQUENCE = 1024
"""The Flax decoder's attention holds its scores, so that long sequences would be about them alone."""

CURVE_TOKENS, CURVE_SEQUENCE, CURVE_STEPS = 4096, 1024, 100

T = TypeVar("T")


def _several(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
    def values(text: str) -> list[T]:
        return [parse(each) for each in text.split(",")]

    values.__name__ = f"list of {parse.__name__}"
    return values


def _one_of(*allowed: str) -> Callable[[str], list[str]]:
    def word(text: str) -> str:
        if text not in allowed:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(allowed)}")
        return text

    return _several(word)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which cases, for how long, and where to."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WORD",
        help=f"only models whose name contains one of these: {', '.join(SHAPES)}",
    )
    parser.add_argument("--what", type=_one_of("step", "longest", "curve"), default=["step"])
    parser.add_argument("--arms", type=_one_of(*ARMS), help=f"by default all of {', '.join(ARMS)}")
    parser.add_argument("--tokens", type=_several(int), default=[8192])
    parser.add_argument("--sequence", type=int, help="tokens of a sequence; by default all, 1024 in Flax")
    parser.add_argument("--checkpointing", type=_one_of("off", "on"), default=["off"])
    parser.add_argument("--train", type=_one_of("full", "lora"), default=["full"])
    parser.add_argument("--valid", type=_several(float), default=[1.0], help="share of the labels that count")
    parser.add_argument(
        "--memory",
        type=_several(float),
        default=[0.0],
        help="GB that torch may take; 0 for all of the device's",
    )
    parser.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw")
    parser.add_argument("--dtype", type=_one_of("bfloat16", "float32"), default=["bfloat16"])
    parser.add_argument("--steps", type=int, help="by default 10 that are timed, and 100 of a curve")
    parser.add_argument("--profile", action="store_true", help="name the kernels that take the most time")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds of a case at most")
    parser.add_argument("--seconds", type=float, default=3600.0, help="seconds of all cases at most")
    add_output(parser)
    add_resume(parser)


def cases(options: argparse.Namespace) -> list[Case]:
    """The cases that the options ask for, the arms of a group one after the other."""
    found = []
    for what in options.what:
        named = [name for name in SHAPES if any(word in name for word in options.words)]
        names = named or list(CURVES if what == "curve" else MODELS)
        product = itertools.product(
            names,
            options.train,
            options.checkpointing,
            options.valid,
            options.dtype,
            options.memory,
            options.tokens,
        )
        for name, train, checkpointing, valid, dtype, memory_gb, tokens in product:
            for arm in options.arms or ARMS:
                flax = arm in FLAX_ARMS
                if flax and (
                    SHAPES[name].family != "llama"
                    or what == "longest"
                    or train == "lora"
                    or checkpointing == "on"
                ):
                    continue  # the decoder has none of these
                sequence = options.sequence or (min(tokens, FLAX_SEQUENCE) if flax else tokens)
                fixed = what == "curve" and name in CURVES
                found.append(
                    Case(
                        model=name,
                        arm=arm,
                        what=what,
                        tokens=CURVE_TOKENS if fixed else tokens,
                        sequence=CURVE_SEQUENCE if fixed else sequence,
                        checkpointing=checkpointing == "on",
                        train=train,
                        valid=valid,
                        optimizer=options.optimizer,
                        dtype=dtype,
                        steps=options.steps or (CURVE_STEPS if what == "curve" else 10),
                        profile=options.profile,
                        seconds=options.limit / 2,
                        memory_gb=memory_gb,
                    )
                )
    return found


def show(result: Result) -> str:
    """A line, and one for each kernel that was asked for."""
    text = f"{result.case.what:7s} {result.case.title:60s} {result.case.arm:12s} "
    if result.note:
        peak = "" if result.peak_gb is None else f" (at {result.peak_gb:.1f} GB)"
        return text + result.note + peak
    if result.case.what == "longest":
        return text + f"fits {result.fits}, fails {result.fails}; {len(result.probes)} lengths tried"
    if result.case.what == "curve":
        return text + f"loss {result.losses[0]:.4f} to {result.losses[-1]:.4f}"
    step = result.step
    assert step is not None
    text += f"{step.median:8.1f} ms ({step.low:.1f} to {step.high:.1f}) {result.tokens_s:8.0f} tokens/s"
    if result.busy_ms is not None:
        text += f"  busy {result.busy_ms:7.1f} ms in {result.launches} launches"
    if result.peak_gb is not None:
        text += f"  peak {result.peak_gb:5.1f} GB"
    if result.reserved_gb is not None:
        text += f" ({result.reserved_gb:.1f})"
    if result.utilisation is not None:
        text += f"  {result.utilisation:.2f} of products"
    text += f"  loss {result.losses[0]:.4f}  set up {result.setup_s:.0f} s"
    kernels = [f"    {time:8.2f} ms {calls:5d} {name[:110]}" for name, calls, time in result.kernels]
    return "\n".join([text, *kernels])


def run(options: argparse.Namespace) -> int:
    """Measure, print and save; the exit status is 1 if a case failed but for lack of memory, or was not run."""
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that the process that has the device is ended
    check(options.words, SHAPES, "model")
    wanted = cases(options)
    if any(case.model in MODELS for case in wanted) and not has_gpu():
        raise SystemExit("benchmarks models needs a GPU; a CPU takes hours for a step of these.")
    before: tuple[Run, ...] = ()
    done: list[Result] = []
    machine: dict[str, Any] = {}
    path: Path | None = None
    not_run = 0
    if options.resume:
        machine = pool.machine()
        path = file_of(options.output, machine["device"], "models")
        before = load(path, Result.from_json)
        known = measured_now(before)
        wanted = [case for case in wanted if case.key not in known]
    for result, found in pool.results(wanted, options.limit, options.seconds):
        print(show(result), flush=True)
        if result.note == pool.NOT_RUN:
            not_run += 1
        else:
            done.append(result)
        if path is None and found:
            machine, path = found, file_of(options.output, found["device"], "models")
            before = load(path, Result.from_json)
        if path is not None and done:  # after every case: a run may be cut short in between
            keep(path, Run.now(machine["device"], None, done, {}, machine["hardware"]), before)
    print(f"{len(done)} results in {path}")
    if not_run:
        print(f"{not_run} cases were not run, for time; --resume goes on with them")
    return int(not_run > 0 or any(result.failed for result in done))

"""`python -m benchmarks host`: what an eager call costs the host, beyond what autograd itself does.

On tensors so small that the device is never behind, blocks of calls by the wall clock without waiting for the device.
A backward pass is the first one of its graph, as in training, and runs on the thread that calls: autograd's engine
would hand it to a thread of the device's, once for all nodes of a model, and to wake that one takes several times what
a node does. Beside every op stands an empty `autograd.Function` with as many
differentiable inputs and outputs, which saves its inputs, allocates outputs and gradients, and computes nothing: an
op's cost is its time minus this one's. What is left is Python, further memory, and the launches, of which each is
several microseconds in the driver alone ("launch").
"""

from __future__ import annotations

import argparse
import functools
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.entry import BACKWARD, FORWARD, Operands, draw
from benchmarks.host_page import EMPTY, HIDDEN, LAUNCH, TOKENS, table
from benchmarks.nvml import Monitor
from benchmarks.options import add_output, asked, check
from benchmarks.passes import differentiated, outputs_of
from benchmarks.providers import EAGER, FUSED, LIGER, Function, liger, note_of
from benchmarks.rows import Row, Run, Spread, file_of, keep, load
from benchmarks.timing import Copy
from benchmarks.turns import rounds
from liger_torch import functional as f

SAMPLES = 30
CALLS = 40
"""In a block: few enough for the queue of launches, which holds 1024, never to be full."""

Call = Callable[[], object]
Block = Callable[[], Sequence[Call]]
"""Makes the CALLS calls of a block."""


class Case(NamedTuple):
    """One op: ours, the others', and operands."""

    operands: Callable[[], Operands]
    ours: Function
    peers: Mapping[str, Function]


def _heads(n: int) -> torch.Tensor:
    """(1, n, tokens, 64), laid out by token, as a model's projections leave it."""
    return draw(1, TOKENS, n, 64).detach().transpose(1, 2).requires_grad_()


def _angles() -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.randn(1, TOKENS, 32).repeat(1, 1, 2)
    return angles.cos().bfloat16(), angles.sin().bfloat16()


def cases() -> dict[str, Case]:
    """The ops that a decoder calls in every layer, and its loss."""
    x, w = functools.partial(draw, TOKENS, HIDDEN), functools.partial(draw, HIDDEN)
    rms, add, layer = (liger(f"liger_{n}") for n in ("rms_norm", "fused_add_rms_norm", "layer_norm"))
    return {
        "rms_norm": Case(
            lambda: (x(), w()),
            f.liger_rms_norm,
            {
                FUSED: lambda x, w: F.rms_norm(x, w.shape, w, 1e-6),
                LIGER: lambda x, w: rms(x, w, 1e-6, in_place=False),
            },
        ),
        "add_rms_norm": Case(
            lambda: (x(), x(), w()),
            f.liger_fused_add_rms_norm,
            {LIGER: lambda x, r, w: add(x, r, w, 1e-6, in_place=False)},
        ),
        "layer_norm": Case(
            lambda: (x(), w(), w()),
            f.liger_layer_norm,
            {
                FUSED: lambda x, w, b: F.layer_norm(x, w.shape, w, b, 1e-6),
                LIGER: lambda x, w, b: layer(x, w, b, 1e-6),
            },
        ),
        "swiglu": Case(lambda: (x(), x()), f.liger_swiglu, {LIGER: liger("liger_swiglu")}),
        "rope": Case(lambda: (_heads(4), _heads(2), *_angles()), f.liger_rope, {LIGER: liger("liger_rope")}),
        "cross_entropy": Case(
            lambda: (x(), torch.randint(0, HIDDEN, (TOKENS,))),
            f.liger_cross_entropy,
            {FUSED: F.cross_entropy, LIGER: liger("liger_cross_entropy")},
        ),
    }


def empty(inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> Callable[[], tuple[torch.Tensor, ...]]:
    """A call of a function of autograd's that does nothing, of these inputs, with outputs like these."""

    class Empty(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            ctx.save_for_backward(*given)
            return tuple([torch.empty_like(t) for t in outputs])

        @staticmethod
        def backward(ctx: Any, *incoming: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple([torch.empty_like(t) for t in ctx.saved_tensors])

    def call() -> tuple[torch.Tensor, ...]:
        found: tuple[torch.Tensor, ...] = Empty.apply(*inputs)
        return found

    return call


def same(call: Call) -> Block:
    """Blocks of one call, over and over."""
    return lambda: [call] * CALLS


def backward_of(call: Call, inputs: list[torch.Tensor]) -> Block:
    """Backward passes, each the first one of a graph of its own, as in training: a second one may compute more."""
    incoming = [torch.ones_like(t) for t in outputs_of(call())]

    def backward() -> Call:
        outputs = outputs_of(call())
        return lambda: torch.autograd.grad(outputs, inputs, incoming)

    return lambda: [backward() for _ in range(CALLS)]


def measure(blocks: Mapping[str, Block]) -> dict[str, Spread]:
    """Microseconds of a call of each one's blocks, in turns; what makes a block is not timed."""
    for block in blocks.values():
        for call in block()[:3]:
            call()
    found: dict[str, list[float]] = {name: [] for name in blocks}
    gc.collect()
    gc.disable()  # which would come to one and not to another
    try:
        with torch.autograd.set_multithreading_enabled(False):
            for name in rounds(dict.fromkeys(blocks, SAMPLES)):
                calls = blocks[name]()
                torch.cuda.synchronize()
                start = time.perf_counter()
                for call in calls:
                    call()
                found[name].append((time.perf_counter() - start) / len(calls) * 1e6)
    finally:
        gc.enable()
    return {name: Spread.of(times) for name, times in found.items()}


def measured(name: str, case: Case) -> Iterator[Row]:
    """The rows of one op."""
    with torch.device("cuda"):
        operands = case.operands()
    inputs = differentiated(operands)
    forward: dict[str, Block] = {}
    backward: dict[str, Block] = {}
    for provider, function in {"ours": case.ours, **case.peers}.items():
        call = functools.partial(function, *operands)
        try:
            block = backward_of(call, inputs)
            block()[0]()
            forward[provider], backward[provider] = same(call), block
        except Exception as failure:  # it is a result
            yield Row(name, provider, "", note=note_of(failure))
    nothing = empty(inputs, outputs_of(case.ours(*operands)))
    forward[EMPTY], backward[EMPTY] = same(nothing), backward_of(nothing, inputs)
    for which, calls in ((FORWARD, forward), (BACKWARD, backward)):
        for provider, spread in measure(calls).items():
            yield Row(name, provider, which, wall_us=spread)


def launch() -> Row:
    """The least that a launch takes: torch's own, of a kernel that writes a few bytes."""
    x = torch.empty(HIDDEN, device="cuda")
    return Row(LAUNCH, EAGER, FORWARD, wall_us=measure({LAUNCH: same(x.zero_)})[LAUNCH])


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which ops, and where to."""
    parser.add_argument("words", nargs="*", metavar="WORD", help="only ops with one of these in their name")
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, print and save."""
    check(options.words, cases(), "op")
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks host needs a GPU; run it where there is one.")
    torch.manual_seed(0)
    device = torch.cuda.get_device_name()
    monitor, copy = Monitor(), Copy()
    before = copy.rate(monitor)
    path = file_of(options.output, device, "host")
    kept = load(path)
    rows = [launch()]

    def save(after: float | None = None) -> None:
        machine = {**monitor.hardware(), "backward passes": "on the thread that calls"}
        keep(path, Run.now(device, (before, after), rows, {}, machine), kept)

    for name, case in cases().items():
        if not asked(name, options.words):
            continue
        for row in measured(name, case):
            rows.append(row)
            told = row.note if row.wall_us is None else f"{row.wall_us.median:.1f} us"
            print(f"{row.entry:16s} {row.which:10s} {row.provider:24s} {told}", flush=True)
        save()  # a run may be cut short in between
    save(copy.rate(monitor))
    print(*table(rows), sep="\n")
    print(f"{len(rows)} rows in {path}")
    return 0 if all(r.wall_us is not None for r in rows if r.is_ours) else 1

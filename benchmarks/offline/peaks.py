"""Memory that torch allocates for every call of the catalogue and for the chunked losses, planned on meta tensors.

Bytes beyond the operands at most: of the forward pass, outputs and what is saved included, and of a step, which adds
cotangents and gradients.
"""

from __future__ import annotations

import torch

from benchmarks.offline import chunked_losses
from benchmarks.offline.section import Figures, Line, Section, Words, growth
from benchmarks.options import asked
from benchmarks.passes import differentiated
from benchmarks.peak_memory import PeakMemory
from liger.plan import WHOLE
from liger_torch import autograd
from liger_torch.backend import DTYPES
from liger_triton.catalogue import FAMILIES, Call

PAIRS, TOKENS = 8, 4096
"""Of preference losses; others have as many answers."""


def of_call(call: Call) -> Line:
    """Peaks of the forward pass and of a step."""
    operands = [
        None
        if array is None
        else torch.empty_strided(array.shape, array.strides, dtype=DTYPES[array.dtype], device="meta")
        for array in call.operands
    ]
    for operand, need in zip(operands, call.asked, strict=True):
        if operand is not None and need:
            operand.requires_grad_()
    with PeakMemory() as memory:
        outputs = autograd.call(call.op, call.options, *operands)
        forward = memory.peak
        starts = [
            output
            for output, declared in zip(outputs, call.op.outputs, strict=True)
            if output is not None and output.requires_grad and declared.name not in call.constant
        ]
        if starts:
            torch.autograd.grad(
                starts,
                differentiated(operands),
                [torch.empty_like(output) for output in starts],
                allow_unused=True,  # one that is added to a buffer
            )
    return {"forward": forward, "step": memory.peak}


def measure(words: Words) -> Figures:
    """Peaks by the call's or the loss's name; not of one device's part of a mesh, which needs the others."""
    calls = (call for family in FAMILIES for call in family() if call.parts == WHOLE)
    found: Figures = {call.name: of_call(call) for call in calls if asked(call.name, words)}
    for loss in chunked_losses.LOSSES:
        name = f"{loss} loss, {PAIRS} pairs of {TOKENS} tokens"
        if asked(name, words):
            found[name] = {"step": chunked_losses.of_a_step(loss, PAIRS, TOKENS, 128_256)}
    return found


def show(name: str, line: Line) -> str:
    """MB of the forward pass and of a step."""
    return f"{name:52s} " + " ".join(f"{field} {line[field] / 1e6:9.1f} MB" for field in line)


SECTION = Section(
    name="peaks",
    title="Memory beyond the operands, at most: forward, and of a step",
    measure=measure,
    complain=growth("forward", "step"),
    show=show,
)

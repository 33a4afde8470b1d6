"""The programs of an implementation that are measured, compiled by XLA, and what it says about each."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from benchmarks.jax_side.entry import Entry, Operands, Specs, active, outputs_of, step_of
from benchmarks.offline import xla_kernels
from benchmarks.providers import Function

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward and backward"
RESIDUALS = "residuals"


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program of (operands, cotangents) or, backward, of (what is kept, cotangents).

    Attributes:
        call: the program.
        peak_mb: memory beyond its arguments, results included, as XLA plans it.
        temporary_mb: memory beyond arguments and results.
        kernels: kernels and copies in XLA's program.
    """

    call: Any
    peak_mb: float
    temporary_mb: float
    kernels: int


def compiled(lowered: Any, tune: bool = True) -> Program:
    """Compile, which takes most of the time and lets other threads run; without `tune`, one that is not timed."""
    program = lowered.compile() if tune else lowered.compile({"xla_gpu_autotune_level": 0})
    memory = program.memory_analysis()
    temporary = memory.temp_size_in_bytes
    peak = temporary + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Program(program, peak / 1e6, temporary / 1e6, xla_kernels.count(program.as_text()))


def residuals_of(function: Function, entry: Entry) -> Function:
    """(operands) -> (outputs, what the backward pass keeps as a function of their cotangents)."""

    def run(operands: Operands) -> Any:
        call, values = active(function, entry.wanted, operands)
        return jax.vjp(call, *values)

    return run


def lowered(entry: Entry, function: Function, specs: Specs, incoming: tuple[Any, ...]) -> dict[str, Any]:
    """What is measured, to be compiled; RESIDUALS makes the backward pass's argument.

    A loss is measured as one program of both passes. Others are measured as three: forward, backward from what the
    forward pass keeps (as where layers are scanned), and one after the other in one program.
    """
    both = jax.jit(step_of(function, entry.wanted)).lower(specs, incoming)
    if entry.step:
        return {BOTH: both}
    found = {FORWARD: jax.jit(lambda operands, _: outputs_of(function(*operands))).lower(specs, incoming)}
    if entry.wanted:
        residuals = jax.jit(residuals_of(function, entry)).lower(specs)
        _, pull = residuals.out_info
        kept, form = jax.tree.flatten(pull)
        # Of arrays alone: taking apart what JAX keeps would be most of the host's work.
        backward = jax.jit(lambda kept, incoming: jax.tree.unflatten(form, kept)(incoming))
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in kept]
        found |= {RESIDUALS: residuals, BACKWARD: backward.lower(shapes, incoming), BOTH: both}
    return found

"""What is run in one process, and what comes of it."""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.rows import Spread, slug

TORCH_ARMS = ("eager", "compile", "liger", "ours", "ours-compile")
"""Hugging Face's model as it is, under torch.compile, with liger-kernel, with this package, and both of these."""

FLAX_ARMS = ("flax-plain", "flax-ours")
"""This package's Flax decoder on plain Flax layers, which XLA compiles, and on this package's."""

ARMS = TORCH_ARMS + FLAX_ARMS
OURS = ("ours", "ours-compile", "flax-ours")

MULTIPLE = 1024
"""Lengths of contexts that are tried are multiples of this."""

TOLERANCE = 0.03
"""The search ends when the shortest length that fails is longer than the longest that fits by this share at most."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One model trained in one way.

    Attributes:
        model: a name of `benchmarks.models.shapes`.
        arm: one of `ARMS`.
        what: "step" for the time and memory of a step, "longest" for the longest context that fits, "curve" for the
            losses of a training.
        tokens: of a step; of a longest context, the first length that is tried.
        sequence: tokens of one sequence.
        checkpointing: whether a layer's activations are computed again in the backward pass.
        train: "full" for all weights, "lora" for adapters of rank 16 on all linear layers but the head.
        valid: share of the labels that count; the others are prompts, as in fine-tuning on instructions.
        optimizer: "adamw" or "sgd", whose states are in the weights' dtype.
        dtype: of the weights.
        steps: how many are timed, or make the curve.
        profile: whether the kernels that take the most time are named.
        seconds: a longest context is looked for until so many have gone.
        memory_gb: in 1e9 bytes, what torch may take of the device's memory; 0 for all of it. It makes of a large GPU a
            smaller one, on which the longest context is short enough to be computed.
    """

    model: str
    arm: str
    what: str = "step"
    tokens: int = 8192
    sequence: int = 8192
    checkpointing: bool = False
    train: str = "full"
    valid: float = 1.0
    optimizer: str = "adamw"
    dtype: str = "bfloat16"
    steps: int = 10
    profile: bool = False
    seconds: float = 90.0
    memory_gb: float = 0.0

    def __post_init__(self) -> None:
        if self.tokens % self.sequence:
            raise ValueError(
                f"tokens is {self.tokens}, which is not a number of sequences of {self.sequence}; change one of them."
            )

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.tokens // self.sequence

    @property
    def group(self) -> tuple[Any, ...]:
        """Equal for cases that differ in the arm alone."""
        return (
            self.what,
            self.model,
            self.train,
            self.optimizer,
            self.checkpointing,
            self.valid,
            self.tokens,
            self.sequence,
            self.dtype,
            self.memory_gb,
            self.is_flax,
        )

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for cases of which a newer result replaces an older one's, however many steps each has timed."""
        return (*self.group, self.arm)

    @property
    def is_flax(self) -> bool:
        """Whether JAX runs it."""
        return self.arm in FLAX_ARMS

    @property
    def title(self) -> str:
        """What the group is, in words."""
        parts = [self.model, "Flax" if self.is_flax else "", "LoRA" if self.train == "lora" else "full"]
        parts.append("" if self.optimizer == "adamw" else self.optimizer.upper())
        parts.append("checkpointed" if self.checkpointing else "")
        if self.what != "longest":
            parts.append(f"{self.batch} x {self.sequence} tokens")
        parts.append("" if self.valid == 1 else f"{self.valid:.0%} of the labels count")
        parts.append(f"in {self.memory_gb:g} GB" if self.memory_gb else "")
        parts.append("" if self.dtype == "bfloat16" else self.dtype)
        return ", ".join(filter(None, parts))


def ran_out_of_memory(failure: Exception) -> bool:
    """Whether it is what torch, its libraries or XLA raise where the device has too little memory."""
    signs = ("out of memory", "ALLOC_FAILED", "RESOURCE_EXHAUSTED")
    return type(failure).__name__ == "OutOfMemoryError" or any(sign in str(failure) for sign in signs)


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a case; what was not found is None.

    Attributes:
        case: the case.
        step: milliseconds from the end of a step to the end of the next one, on the device's clock.
        wall_ms: the same by the wall clock, all steps over their number.
        busy_ms: time of a step in which the device computes, the sum over its kernels.
        launches: kernels and copies of a step.
        peak_gb: memory allocated at most in a step, weights, gradients and optimiser states included, in 1e9 bytes.
        reserved_gb: memory that the allocator had taken from the device.
        tflops: floating point operations of the model in a step, in 1e12: those of recomputation do not count, those
            of the head count for every token.
        product_tflops: rate of a matrix product of 8192 x 8192 x 8192 in the same process, before and after.
        losses: of the steps, beginning with the first one that was made; of a step's case, the first alone.
        kernels: (name, calls, milliseconds) of a step, longest first.
        fits: the longest context that a step was made of.
        fails: the shortest one that ran out of memory.
        probes: (tokens, milliseconds or None, peak in 1e9 bytes) of the search.
        setup_s: seconds until the first step was made, with building and compiling.
        note: why there is no result.
    """

    case: Case
    step: Spread | None = None
    wall_ms: float | None = None
    busy_ms: float | None = None
    launches: int | None = None
    peak_gb: float | None = None
    reserved_gb: float | None = None
    tflops: float | None = None
    product_tflops: tuple[float, float] | None = None
    losses: tuple[float, ...] = ()
    kernels: tuple[tuple[str, int, float], ...] = ()
    fits: int | None = None
    fails: int | None = None
    probes: tuple[tuple[int, float | None, float], ...] = ()
    setup_s: float | None = None
    note: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        """The case's."""
        return self.case.key

    @property
    def failed(self) -> bool:
        """Whether it broke off, and not for lack of memory."""
        return self.note.startswith("failed")

    @property
    def is_ours(self) -> bool:
        """Whether it is an arm with this package."""
        return self.case.arm in OURS

    @property
    def anchor(self) -> str:
        """Its place on a page."""
        return slug(f"{self.case.what} {self.case.title} {self.case.arm}")

    @property
    def is_at_least(self) -> bool:
        """Whether a longer context may fit than the longest one found: the search ended for lack of time."""
        if self.fits is None:
            return False
        return self.fails is None or self.fails - self.fits > max(MULTIPLE, TOLERANCE * self.fits)

    @property
    def tokens_s(self) -> float | None:
        """Tokens per second."""
        return None if self.step is None else self.case.tokens / self.step.median * 1e3

    @property
    def utilisation(self) -> float | None:
        """The model's operations over what the matrix product would have done in the same time."""
        if self.step is None or self.tflops is None or self.product_tflops is None:
            return None
        rate = sum(self.product_tflops) / 2
        return self.tflops / (self.step.median / 1e3) / rate

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Result:
        """Of what JSON holds; what is not there was not found."""
        values = {name: value for name, value in found.items() if value is not None}
        values["case"] = Case(**values["case"])
        if "step" in values:
            values["step"] = Spread(**values["step"])
        for name in ("product_tflops", "losses"):
            if name in values:
                values[name] = tuple(values[name])
        for name in ("kernels", "probes"):
            if name in values:
                values[name] = tuple(map(tuple, values[name]))
        return cls(**values)

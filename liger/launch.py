"""One kernel call, described without any framework.

A `Launch` is what both frontends, the interpreter, the ahead-of-time compiler and the benchmarks read. It is
built by pure functions of shapes, dtypes, options and a `Device`, so it is hashable and can be cached.

Kernel parameters stand in one order, the only one that every jax-triton version can express:

    input pointers, runtime integers, output pointers, then tl.constexpr

Floats are constexpr, or one-element arrays where the value is only known on the device.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

Constant = int | float | bool | str
"""The values that may be compiled into a kernel."""

DTYPE_BYTES: dict[str, int] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}

TRITON_DTYPE: dict[str, str] = {
    "float64": "fp64",
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "int64": "i64",
    "int32": "i32",
    "int16": "i16",
    "int8": "i8",
    "uint8": "u8",
    "bool": "i1",
}
"""Our dtype names (numpy's) in the spelling of Triton's signatures."""


@dataclasses.dataclass(frozen=True, slots=True)
class Spec:
    """Shape and dtype of an array that a kernel reads or writes.

    Attributes:
        shape: the logical shape; strides, where they matter, are constants of the launch.
        dtype: numpy's name of the dtype, e.g. "bfloat16".
        passes: how many times the kernel streams the array through device memory; a fraction where it does so with a
            part of it.
        resident: read by many programs but small enough to stay in cache (a weight, a table): it counts once.
        unread: a pointer that the kernel takes but, with these constants, never dereferences.
        lookups: where single elements are looked up, how many at most; None: all elements are read.
    """

    shape: tuple[int, ...]
    dtype: str
    passes: float = 1
    resident: bool = False
    unread: bool = False
    lookups: int | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array that are read or written: 0 for one that is not read."""
        n = self.size if self.lookups is None else min(self.size, self.lookups)
        return 0 if self.unread else n * DTYPE_BYTES[self.dtype]


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """One call of a Triton kernel.

    Attributes:
        kernel: the `@triton.jit` function.
        grid: number of programs, one to three axes. A grid with a 0 launches nothing.
        inputs: what the input pointers point to.
        outputs: what the kernel writes; the frontend allocates it.
        integers: runtime integers (rows, lengths): they change from batch to batch and must not recompile.
        constants: names and values of the tl.constexpr parameters.
        num_warps: warps per program.
        num_stages: software pipelining depth, for loops that ask for it.
        aliases: pairs (input index, output index) that share memory. The kernel takes both pointers, reads
            through the first, writes through the second, and never reads what it has written.
        flops: floating-point operations.
    """

    kernel: Any
    grid: tuple[int, ...]
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    integers: tuple[int, ...] = ()
    constants: tuple[tuple[str, Constant], ...] = ()
    num_warps: int = 4
    num_stages: int = 3
    aliases: tuple[tuple[int, int], ...] = ()
    flops: int = 0

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.__name__)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to launch."""
        return 0 in self.grid

    @property
    def bytes(self) -> int:
        """Least bytes that any kernel for this call must move: each input read once, each output written once."""
        return sum(a.nbytes for a in (*self.inputs, *self.outputs))

    @property
    def traffic(self) -> int:
        """Bytes that this kernel moves: like `bytes`, with arrays counted as often as they are streamed."""
        return round(sum(a.nbytes * a.passes for a in (*self.inputs, *self.outputs)))


def cdiv(numerator: int, denominator: int) -> int:
    """Quotient rounded up."""
    return -(-numerator // denominator)


def next_power_of_2(n: int) -> int:
    """Smallest power of two that is at least n, and at least 1."""
    return 1 << max(n - 1, 0).bit_length()


def previous_power_of_2(n: int) -> int:
    """Largest power of two that is at most n, and at least 1."""
    return 1 << max(n.bit_length() - 1, 0)


_FLOAT_ORDER = {"float16": 1, "bfloat16": 1, "float32": 2, "float64": 3}


def promote(first: str, second: str) -> str:
    """Common floating dtype of two arrays, by the rule torch and JAX share (float16 with bfloat16: float32)."""
    if first == second:
        return first
    if _FLOAT_ORDER[first] == _FLOAT_ORDER[second]:
        return "float32"
    return max(first, second, key=_FLOAT_ORDER.__getitem__)

"""Products of quantised matrices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from benchmarks.entry import Entry, Operands
from benchmarks.providers import EAGER, LIGER, peer
from benchmarks.sizes import SIZES
from liger.reference import int2_matmul as reference
from liger_torch import experimental
from liger_triton import int2_matmul


def _operands(m: int, k: int, n: int) -> Operands:
    a = torch.randint(-128, 128, (m, k), dtype=torch.int8)
    weights = torch.randint(-1, 2, (k, n), dtype=torch.int8)
    return a, reference.pack(weights)  # without its check, which needs the numbers


def _vendors(a: torch.Tensor, packed: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The product of two int8 matrices, the second one stored by columns, as the matrix units like it best."""
    weights = experimental.unpack_weights(packed).to(torch.int8).t().contiguous().t()
    return lambda: torch._int_mm(a, weights)


def _unpacked_first(a: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    return torch._int_mm(a, experimental.unpack_weights(packed).to(torch.int8))


def entries() -> Iterator[Entry]:
    """Projections of Llama-3-8B; for few rows it is memory that counts, for many the product."""
    for m, k, n in SIZES.int2_matmul:
        peers = {LIGER: peer(LIGER, "liger_kernel.ops.experimental.mm_int8int2.matmul")}
        if m > 16:  # what torch._int_mm takes
            peers[EAGER] = _unpacked_first
        yield Entry(
            f"int2_matmul {m}x{k}x{n}",
            int2_matmul.INT2_MATMUL,
            int2_matmul.Options(),
            functools.partial(_operands, m, k, n),
            experimental.matmul,
            peers,
            products=_vendors if m >= 8192 else None,
            compiled=False,  # the product is torch's own either way
        )

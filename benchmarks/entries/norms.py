"""Normalisation."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from benchmarks.entry import Entry, Operands, draw, peer
from liger_torch import functional as f
from liger_triton import rms_norm

SIZES = ((8192, 4096), (8192, 8192), (65_536, 1024))


def _operands(n: int, h: int) -> Operands:
    return draw(n, h), draw(h)


def _with_residual(n: int, h: int) -> Operands:
    return draw(n, h), draw(n, h), draw(h)


def entries() -> Iterator[Entry]:
    """RMSNorm, with and without a residual."""
    for n, h in SIZES:
        yield Entry(
            f"rms_norm {n}x{h}",
            rms_norm.RMS_NORM,
            rms_norm.Options(),
            functools.partial(_operands, n, h),
            f.liger_rms_norm,
            peer("liger-kernel", "liger_kernel.transformers.functional.liger_rms_norm"),
        )
        yield Entry(
            f"add_rms_norm {n}x{h}",
            rms_norm.ADD_RMS_NORM,
            rms_norm.Options(),
            functools.partial(_with_residual, n, h),
            f.liger_fused_add_rms_norm,
        )

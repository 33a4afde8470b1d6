"""Normalisation."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.entry import Entry, Function, Operands, draw, peer
from liger_torch import functional as f
from liger_triton import group_norm, layer_norm, rms_norm

SIZES = ((8192, 4096), (8192, 8192), (65_536, 1024))


def _operands(n: int, h: int) -> Operands:
    return draw(n, h), draw(h)


def _with_residual(n: int, h: int) -> Operands:
    return draw(n, h), draw(n, h), draw(h)


def _with_bias(n: int, h: int) -> Operands:
    return draw(n, h), draw(h), draw(h)


def _with_residual_and_bias(n: int, h: int) -> Operands:
    return draw(n, h), draw(n, h), draw(h), draw(h)


def _four(n: int, h: int) -> tuple[int, int, int]:
    """Four matrices each way: the gradients of both summands are the same array."""
    matrix = 2 * n * h
    return 4 * matrix, 4 * matrix, 8 * matrix


def _torch_layer_norm(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, w.shape, w, b, 1e-6)


def _liger_rms_norm() -> dict[str, Function]:
    found = peer("liger-kernel", "liger_kernel.transformers.functional.liger_rms_norm")
    return {name: lambda x, w: function(x, w, 1e-6, in_place=False) for name, function in found.items()}  # noqa: B023


def _liger_layer_norm() -> dict[str, Function]:
    found = peer("liger-kernel", "liger_kernel.transformers.functional.liger_layer_norm")
    return {name: lambda x, w, b: function(x, w, b, 1e-6) for name, function in found.items()}  # noqa: B023


def _images(n: int, c: int, positions: int) -> Operands:
    return draw(n, c, positions), draw(c), draw(c)


def _liger_group_norm() -> dict[str, Function]:
    found = peer("liger-kernel", "liger_kernel.transformers.functional.liger_group_norm")
    return {name: lambda x, w, b: function(x, w, b, w.shape[0], 32, 1e-6) for name, function in found.items()}  # noqa: B023


def entries() -> Iterator[Entry]:
    """RMSNorm and LayerNorm, with and without a residual; GroupNorm."""
    for n, h in SIZES:
        yield Entry(
            f"rms_norm {n}x{h}",
            rms_norm.RMS_NORM,
            rms_norm.Options(),
            functools.partial(_operands, n, h),
            f.liger_rms_norm,
            _liger_rms_norm(),
        )
        yield Entry(
            f"add_rms_norm {n}x{h}",
            rms_norm.ADD_RMS_NORM,
            rms_norm.Options(),
            functools.partial(_with_residual, n, h),
            f.liger_fused_add_rms_norm,
            moved=_four(n, h),
        )
        yield Entry(
            f"layer_norm {n}x{h}",
            layer_norm.LAYER_NORM,
            layer_norm.Options(),
            functools.partial(_with_bias, n, h),
            f.liger_layer_norm,
            {"torch eager": _torch_layer_norm, **_liger_layer_norm()},
        )
        yield Entry(
            f"add_layer_norm {n}x{h}",
            layer_norm.ADD_LAYER_NORM,
            layer_norm.Options(),
            functools.partial(_with_residual_and_bias, n, h),
            f.liger_fused_add_layer_norm,
            moved=_four(n, h),
        )
    for n, c, side in ((16, 320, 64), (64, 1280, 8), (1, 128, 512)):
        yield Entry(
            f"group_norm {n}x{c}x{side}x{side}, 32 groups",
            group_norm.GROUP_NORM,
            group_norm.Options(num_groups=32),
            functools.partial(_images, n, c, side * side),
            lambda x, w, b: f.liger_group_norm(x, w, b, w.shape[0], 32, 1e-6),
            {"torch eager": lambda x, w, b: F.group_norm(x, 32, w, b, 1e-6), **_liger_group_norm()},
        )

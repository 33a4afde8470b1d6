"""Normalisation."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.entry import BACKWARD, FORWARD, Entry, Operands, draw
from benchmarks.providers import EAGER, FUSED, LIGER, liger, peer
from benchmarks.sizes import SIZES
from liger_torch import functional as f
from liger_triton import group_norm, layer_norm, rms_norm

EPS = 1e-6

NORM = {FORWARD: 0.93, BACKWARD: 0.85}
ADD = {FORWARD: 0.92, BACKWARD: 0.85}
TWICE = {(LIGER, BACKWARD): 2.0}

Two = tuple[torch.Tensor, torch.Tensor]


def _operands(n: int, h: int) -> Operands:
    return draw(n, h), draw(h)


def _with_residual(n: int, h: int) -> Operands:
    return draw(n, h), draw(n, h), draw(h)


def _with_bias(n: int, h: int) -> Operands:
    return draw(n, h), draw(h), draw(h)


def _with_residual_and_bias(n: int, h: int) -> Operands:
    return draw(n, h), draw(n, h), draw(h), draw(h)


def plain_rms_norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """As the models of Hugging Face have it: x / rms(x) is rounded before the weight."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    return w * wide.to(x.dtype)


def _layer_norm(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, w.shape, w, b, EPS)


def _plain_layer_norm(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    wide = wide - wide.mean(-1, keepdim=True)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    return (wide * w.float() + b.float()).to(x.dtype)


def _plain_add_rms_norm(x: torch.Tensor, r: torch.Tensor, w: torch.Tensor) -> Two:
    total = x + r
    return plain_rms_norm(total, w), total


def _plain_add_layer_norm(x: torch.Tensor, r: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> Two:
    total = x + r
    return _layer_norm(total, w, b), total


def _fused_add_rms_norm(x: torch.Tensor, r: torch.Tensor, w: torch.Tensor) -> Two:
    total = x + r
    return F.rms_norm(total, w.shape, w, EPS), total


def _images(n: int, c: int, positions: int) -> Operands:
    return draw(n, c, positions), draw(c), draw(c)


def entries() -> Iterator[Entry]:
    """RMSNorm and LayerNorm, with and without a residual; GroupNorm."""
    liger_rms, liger_add = liger("liger_rms_norm"), liger("liger_fused_add_rms_norm")
    liger_layer, liger_group = liger("liger_layer_norm"), liger("liger_group_norm")
    quack = peer("quack", "quack.rmsnorm.rmsnorm")
    for n, h in SIZES.norms:
        yield Entry(
            f"rms_norm {n}x{h}",
            rms_norm.RMS_NORM,
            rms_norm.Options(),
            functools.partial(_operands, n, h),
            f.liger_rms_norm,
            {
                EAGER: plain_rms_norm,
                FUSED: lambda x, w: F.rms_norm(x, w.shape, w, EPS),
                LIGER: lambda x, w: liger_rms(x, w, EPS, in_place=False),
                "quack": lambda x, w: quack(x, w, eps=EPS),
            },
            target=NORM,
            ahead=TWICE,
        )
        yield Entry(
            f"add_rms_norm {n}x{h}",
            rms_norm.ADD_RMS_NORM,
            rms_norm.Options(),
            functools.partial(_with_residual, n, h),
            f.liger_fused_add_rms_norm,
            {
                EAGER: _plain_add_rms_norm,
                FUSED: _fused_add_rms_norm,
                LIGER: lambda x, r, w: liger_add(x, r, w, EPS, in_place=False),
                "quack": lambda x, r, w: quack(x, w, residual=r, eps=EPS, prenorm=True),
            },
            target=ADD,
            ahead=TWICE,
        )
        yield Entry(
            f"layer_norm {n}x{h}",
            layer_norm.LAYER_NORM,
            layer_norm.Options(),
            functools.partial(_with_bias, n, h),
            f.liger_layer_norm,
            {
                EAGER: _plain_layer_norm,
                FUSED: _layer_norm,
                LIGER: lambda x, w, b: liger_layer(x, w, b, EPS),
            },
            target=NORM,
            ahead=TWICE,
        )
        yield Entry(
            f"add_layer_norm {n}x{h}",
            layer_norm.ADD_LAYER_NORM,
            layer_norm.Options(),
            functools.partial(_with_residual_and_bias, n, h),
            f.liger_fused_add_layer_norm,
            {EAGER: _plain_add_layer_norm},
            target=ADD,
        )
    for n, c, side in SIZES.images:
        yield Entry(
            f"group_norm {n}x{c}x{side}x{side}, 32 groups",
            group_norm.GROUP_NORM,
            group_norm.Options(num_groups=32),
            functools.partial(_images, n, c, side * side),
            lambda x, w, b: f.liger_group_norm(x, w, b, w.shape[0], 32, EPS),
            {
                FUSED: lambda x, w, b: F.group_norm(x, 32, w, b, EPS),
                EAGER: _plain_group_norm,
                LIGER: lambda x, w, b: liger_group(x, w, b, w.shape[0], 32, EPS),
            },
        )


def _plain_group_norm(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    wide = x.float().unflatten(1, (32, -1))
    wide = wide - wide.mean((-2, -1), keepdim=True)
    wide = wide * torch.rsqrt(wide.square().mean((-2, -1), keepdim=True) + EPS)
    return (wide.flatten(1, 2) * w.float()[:, None] + b.float()[:, None]).to(x.dtype)

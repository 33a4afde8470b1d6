"""Widths and numbers of heads of published models, at which launches are laid out by rules of their own.

The cases that every op has are small. Here rows leave a gap in their block, are held by few threads or swept, and heads
are no power of two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch_runner import error

from liger_torch import functional as f

WIDTHS = (
    896,
    1152,
    1536,
    2304,
    2560,
    2880,
    3072,
    3584,
    4096,
    5120,
    6144,
    7168,
    7169,
    8192,
    9216,
    12_288,
    16_384,
    18_432,
)
HEADS = {
    "Llama 3.2 1B": (32, 8, 64, 64),
    "Llama 3 70B": (64, 8, 128, 128),
    "Qwen2.5 0.5B": (14, 2, 64, 64),
    "Qwen2.5 14B": (40, 8, 128, 128),
    "Qwen2.5 7B": (28, 4, 128, 128),
    "Qwen3 Next": (16, 2, 256, 64),
    "SmolLM2 360M": (15, 5, 64, 64),
    "Pythia 410M": (16, 16, 64, 16),
    "GPT-NeoX 20B": (64, 64, 96, 24),
    "Falcon 7B": (71, 1, 64, 64),
}
"""Heads of q and of k, their width, and how much of it is rotated."""

Function = Callable[..., torch.Tensor | Sequence[torch.Tensor]]


def draw(*shape: int, seed: int, device: str) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).bfloat16().requires_grad_()


def results(function: Function, operands: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Outputs, and gradients for cotangents that 16 bits hold."""
    found = function(*operands)
    outputs = [found] if isinstance(found, torch.Tensor) else list(found)
    incoming = [
        draw(*y.shape, seed=9 + i, device=y.device.type).detach().to(y.dtype) for i, y in enumerate(outputs)
    ]
    wanted = [x for x in operands if x.requires_grad]
    return [*outputs, *torch.autograd.grad(outputs, wanted, incoming)]


def check(ours: Function, plain: Function, operands: Sequence[torch.Tensor]) -> None:
    """Assert that ours are the plain formula's in float64, to the roundings of outputs and of what is kept."""
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in operands]
    for mine, truth in zip(results(ours, operands), results(plain, exact), strict=True):
        assert error(mine, truth) < 2**-8


def check_norms(width: int, rows: int, device: str) -> None:
    """RMSNorm, with and without a residual, and LayerNorm of rows of this width."""
    shapes = ((rows, width), (rows, width), (width,), (width,))
    x, r, w, b = (draw(*shape, seed=i, device=device) for i, shape in enumerate(shapes))
    check(lambda x, w: f.liger_rms_norm(x, w, 1e-6), lambda x, w: F.rms_norm(x, w.shape, w, 1e-6), (x, w))
    check(
        lambda x, w, b: f.liger_layer_norm(x, w, b, 1e-6),
        lambda x, w, b: F.layer_norm(x, w.shape, w, b, 1e-6),
        (x, w, b),
    )
    check(
        lambda x, r, w: f.liger_fused_add_rms_norm(x, r, w, 1e-6),
        lambda x, r, w: (F.rms_norm(x + r, w.shape, w, 1e-6), x + r),
        (x, r, w),
    )


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Heads (batch, tokens, heads, width) with the first entries turned by halves."""
    turned, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], -1)
    left, right = turned.chunk(2, -1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return torch.cat((turned * cos + torch.cat((-right, left), -1) * sin, rest), -1)


def check_rotations(model: str, transposed: bool, tokens: int, device: str) -> None:
    """RoPE, and QK norm with it, of heads laid out by token or, as Hugging Face's models hand them over, by head."""
    q_heads, k_heads, width, rotary = HEADS[model]
    shapes = [(1, n, tokens, width) if transposed else (1, tokens, n, width) for n in (q_heads, k_heads)]
    q, k = (draw(*shape, seed=i, device=device) for i, shape in enumerate(shapes))
    cos, sin = (draw(1, tokens, rotary, seed=i, device=device).detach() for i in (2, 3))
    tables = [torch.cat((t[..., : rotary // 2],) * 2, -1) for t in (cos, sin)]
    axis = 1 if transposed else 2

    def by_token(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2) if transposed else x

    check(
        lambda q, k, cos, sin: f.liger_rope(q, k, cos, sin, unsqueeze_dim=axis),
        lambda q, k, cos, sin: [by_token(rotated(by_token(x), cos, sin)) for x in (q, k)],
        (q, k, *tables),
    )
    w, v = (draw(width, seed=i, device=device) for i in (4, 5))
    check(
        lambda q, k, w, v, cos, sin: f.liger_qk_norm_rope(q, k, w, v, cos, sin, unsqueeze_dim=axis),
        lambda q, k, w, v, cos, sin: [
            by_token(rotated(F.rms_norm(by_token(x), weight.shape, weight, 1e-6), cos, sin))
            for x, weight in ((q, w), (k, v))
        ],
        (q, k, w, v, *tables),
    )

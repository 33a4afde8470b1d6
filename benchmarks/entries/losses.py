"""Cross entropy, on logits and fused with the linear layer."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.entry import Entry, Function, Operands, draw, peer
from liger_torch import functional as f
from liger_torch import valid_rows
from liger_triton import cross_entropy, linear_cross_entropy


def labels(n: int, vocab: int) -> torch.Tensor:
    """Random labels, none ignored."""
    return torch.randint(0, vocab, (n,), device="cuda")


def _logits(n: int, vocab: int) -> Operands:
    return draw(n, vocab), labels(n, vocab), None


def entries() -> Iterator[Entry]:
    """The heads of Llama 2 and 3 and of Gemma 2."""
    for n, v in ((8192, 128_256), (4096, 256_000), (16_384, 32_000)):
        yield Entry(
            f"cross_entropy {n}x{v}",
            cross_entropy.CROSS_ENTROPY,
            cross_entropy.Options(),
            functools.partial(_logits, n, v),
            lambda z, y, _: f.liger_cross_entropy(z, y),
            {"torch eager": lambda z, y, _: F.cross_entropy(z.float(), y)},
            step=True,
        )
    for n, h, v in ((8192, 4096, 128_256), (16_384, 4096, 128_256), (8192, 2304, 256_000)):
        yield _fused(n, h, v, half=False)
        yield _fused(n, h, v, half=True)


def _fused(n: int, h: int, v: int, half: bool) -> Entry:
    """With `half` every other label is ignored, and the matrix products are those of the others."""

    def operands() -> Operands:
        ids = labels(n, v)
        if half:
            ids[::2] = -100
        return draw(n, h), draw(v, h, scale=0.02), ids, None, None, None, None

    def ours(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, *_: None) -> object:
        valid = valid_rows(y) if half else None
        return f.liger_fused_linear_cross_entropy(x, w, y, valid_rows=valid)

    def per_token(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, *_: None) -> torch.Tensor:
        loss = f.liger_fused_linear_cross_entropy(x, w, y, reduction="none")
        assert isinstance(loss, torch.Tensor)
        return loss.sum() / (y != -100).sum()

    def products(x: torch.Tensor, w: torch.Tensor, *_: object) -> object:
        x = x[::2] if half else x
        # Not zeros: a product of zeros runs faster than one of numbers.
        d = torch.empty(x.shape[0], v, dtype=torch.bfloat16, device="cuda").normal_()
        return lambda: (x @ w.t(), d @ w, d.t() @ x)

    others: dict[str, Function] = {
        "per token (recomputes)": per_token,
        "torch eager": lambda x, w, y, *_: F.cross_entropy(F.linear(x, w).float(), y),
    }
    for name, function in peer(
        "liger-kernel", "liger_kernel.transformers.functional.liger_fused_linear_cross_entropy"
    ).items():
        others[name] = lambda x, w, y, *_: function(x, w, y)  # noqa: B023
    name = f"linear_cross_entropy {n} tokens, hidden {h}, vocabulary {v}"
    return Entry(
        name + (", half the labels ignored" if half else ""),
        linear_cross_entropy.LINEAR_CROSS_ENTROPY,
        linear_cross_entropy.Options(),
        operands,
        ours,
        others,
        products,
        step=True,
    )

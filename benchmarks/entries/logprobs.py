"""Log-probabilities of tokens, on logits and fused with the linear layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.entries.losses import labels
from benchmarks.entry import Entry, Function, Operands, draw
from liger_torch import functional as f
from liger_triton import linear_logprobs, logprobs

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _plain(logits: torch.Tensor, ids: torch.Tensor) -> Three:
    log_p = logits.float().log_softmax(-1)
    own = log_p.gather(-1, ids[:, None])[:, 0]
    return own, logits.float().logsumexp(-1), -(log_p.exp() * log_p).sum(-1)


def entries() -> Iterator[Entry]:
    """The head of Llama 3, as a policy."""
    n, h, v = 8192, 4096, 128_256
    yield Entry(
        f"logprobs {n}x{v}",
        logprobs.LOGPROBS,
        logprobs.Options(),
        lambda: (draw(n, v), labels(n, v)),
        lambda z, y: tuple(f.token_logprobs(z, y)),
        {"torch eager": _plain},
        step=True,
    )
    for frozen in (False, True):
        yield _fused(n, h, v, frozen, alone=False)
        yield _fused(n, h, v, frozen, alone=True)


def _fused(n: int, h: int, v: int, frozen: bool, alone: bool) -> Entry:
    """All three results with a gradient each, or logp `alone`."""

    def operands() -> Operands:
        head = draw(v, h, scale=0.02)
        return draw(n, h), head.requires_grad_(not frozen), labels(n, v), None, None

    def function(keep: str | bool) -> Function:
        def run(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, *_: None) -> tuple[torch.Tensor, ...]:
            if alone:
                return (f.fused_linear_logprobs(x, w, y, keep_logits=keep, differentiable=("logp",)).logp,)
            return tuple(f.fused_linear_logprobs(x, w, y, keep_logits=keep))

        return run

    def plain(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, *_: None) -> tuple[torch.Tensor, ...]:
        return _plain(F.linear(x, w), y)[: 1 if alone else 3]

    def products(x: torch.Tensor, w: torch.Tensor, *_: object) -> object:
        # Not zeros: a product of zeros runs faster than one of numbers.
        d = torch.empty(n, v, dtype=torch.bfloat16, device="cuda").normal_()
        return lambda: (x @ w.t(), d @ w) if frozen else (x @ w.t(), d @ w, d.t() @ x)

    others: dict[str, Function] = {
        "all logits kept": function(True),
        "none kept (recomputes)": function(False),
        "torch eager": plain,
    }
    variant = f"{'frozen head' if frozen else 'head'}{', logp alone' if alone else ''}"
    return Entry(
        f"linear_logprobs {n} tokens, hidden {h}, vocabulary {v}, {variant}",
        linear_logprobs.LINEAR_LOGPROBS,
        linear_logprobs.Options(),
        operands,
        function("auto"),
        others,
        products,
        step=True,
        outputs=("logp",) if alone else None,
    )

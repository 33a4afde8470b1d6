"""Log-probabilities of tokens, on logits and fused with the linear layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.entries.losses import labels
from benchmarks.entry import Entry, Function, Operands, draw
from liger_torch import functional as f
from liger_triton import linear_logprobs, logprobs


def _sum(results: f.LogProbs) -> torch.Tensor:
    """A loss of all three, each with a gradient of its own."""
    logp, lse, entropy = results
    return logp.sum() + 0.1 * lse.sum() + 0.01 * entropy.sum()


def _plain(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    log_p = logits.float().log_softmax(-1)
    own = log_p.gather(-1, ids[:, None])[:, 0]
    lse, entropy = logits.float().logsumexp(-1), -(log_p.exp() * log_p).sum(-1)
    return _sum(f.LogProbs(own, lse, entropy))


def entries() -> Iterator[Entry]:
    """The head of Llama 3, as a policy."""
    n, h, v = 8192, 4096, 128_256
    yield Entry(
        f"logprobs {n}x{v}",
        logprobs.LOGPROBS,
        logprobs.Options(),
        lambda: (draw(n, v), labels(n, v)),
        lambda z, y: _sum(f.token_logprobs(z, y)),
        {"torch eager": _plain},
        step=True,
    )
    for frozen in (False, True):
        yield _fused(n, h, v, frozen)


def _fused(n: int, h: int, v: int, frozen: bool) -> Entry:
    def operands() -> Operands:
        head = draw(v, h, scale=0.02)
        return draw(n, h), head.requires_grad_(not frozen), labels(n, v), None, None

    def function(keep: str | bool, differentiable: tuple[str, ...]) -> Function:
        def run(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, *_: None) -> torch.Tensor:
            results = f.fused_linear_logprobs(x, w, y, keep_logits=keep, differentiable=differentiable)
            return results.logp.sum() if differentiable == ("logp",) else _sum(results)

        return run

    def products(x: torch.Tensor, w: torch.Tensor, *_: object) -> object:
        # Not zeros: a product of zeros runs faster than one of numbers.
        d = torch.empty(n, v, dtype=torch.bfloat16, device="cuda").normal_()
        return lambda: (x @ w.t(), d @ w) if frozen else (x @ w.t(), d @ w, d.t() @ x)

    every, logp = ("logp", "lse", "entropy"), ("logp",)
    others: dict[str, Function] = {
        "all logits kept": function(True, every),
        "none kept (recomputes)": function(False, every),
        "logp alone": function("auto", logp),
        "torch eager": lambda x, w, y, *_: _plain(F.linear(x, w), y),
    }
    head = "frozen head" if frozen else "head"
    return Entry(
        f"linear_logprobs {n} tokens, hidden {h}, vocabulary {v}, {head}",
        linear_logprobs.LINEAR_LOGPROBS,
        linear_logprobs.Options(),
        operands,
        function("auto", every),
        others,
        products,
        step=True,
    )

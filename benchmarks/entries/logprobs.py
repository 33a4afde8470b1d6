"""Log-probabilities of tokens, of logits and fused with the linear layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from benchmarks.entries.heads import gradient_of_logits, head, labels, plain_logp, products
from benchmarks.entry import BOTH, Entry, Operands, draw
from benchmarks.providers import EAGER, LIGER, Function, peer
from liger_torch import functional as f
from liger_triton import linear_logprobs, logprobs

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _plain(logits: torch.Tensor, ids: torch.Tensor) -> Three:
    log_p = logits.float().log_softmax(-1)
    own = log_p.gather(-1, ids[:, None])[:, 0]
    return own, logits.float().logsumexp(-1), -(log_p.exp() * log_p).sum(-1)


def trl_logp() -> Function:
    """TRL's, of (tokens, hidden), without the logits."""
    function = peer("trl", "trl.kernels.chunked_logprob.ChunkedLogProbFunction.apply")
    return lambda x, w, ids: function(x, w, None, ids, 1.0, 32_768, None, 1.0, ("log_probs",))[0]


def entries() -> Iterator[Entry]:
    """The head of Llama 3, as a policy."""
    n, h, v = 8192, 4096, 128_256
    yield Entry(
        f"logprobs {n}x{v}",
        logprobs.LOGPROBS,
        logprobs.Options(),
        lambda: (draw(n, v), labels(n, v)),
        lambda z, y: tuple(f.token_logprobs(z, y)),
        {EAGER: _plain},
        step=True,
    )
    yield entry(n, h, v, alone=True, keep=True, target=0.92, memory=True)
    yield entry(n, h, v, alone=True, keep=False, target=0.92, memory=True)
    yield entry(n, h, v, alone=True)
    yield entry(n, h, v)
    yield entry(n, h, v, frozen=True, alone=True)


def entry(
    n: int,
    h: int,
    v: int,
    frozen: bool = False,
    alone: bool = False,
    keep: str | bool = "auto",
    target: float | None = None,
    memory: bool = False,
) -> Entry:
    """All three results with a gradient each, or logp `alone`; with all logits kept, or none of them, or by default."""

    def operands() -> Operands:
        return *head(n, h, v, frozen), labels(n, v), None, None

    def ours(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, *_: None) -> tuple[torch.Tensor, ...]:
        if alone:
            return (f.fused_linear_logprobs(x, w, y, keep_logits=keep, differentiable=("logp",)).logp,)
        return tuple(f.fused_linear_logprobs(x, w, y, keep_logits=keep))[:3]

    def plain(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, *_: None) -> tuple[torch.Tensor, ...]:
        return (plain_logp(x, w, y),) if alone else _plain(F.linear(x, w), y)

    def vendors(x: torch.Tensor, w: torch.Tensor, *_: object) -> Callable[[], object]:
        if keep is not False:
            return products(x, w, frozen)
        d = gradient_of_logits(x, w)
        return lambda: (x @ w.t(), x @ w.t(), d @ w, d.t() @ x)

    peers: dict[str, Function] = {EAGER: plain}
    if alone and not frozen:
        scaled = peer(LIGER, "liger_kernel.ops.LigerFusedLinearScaledCrossEntropyFunction.apply")
        trl = trl_logp()
        peers[LIGER] = lambda x, w, y, *_: -scaled(x, w, y)
        peers["trl"] = lambda x, w, y, *_: trl(x, w, y)
    variant = f"{'frozen head' if frozen else 'head'}{', logp alone' if alone else ''}"
    kept = {True: ", logits kept", False: ", recomputed"}.get(keep, "") if isinstance(keep, bool) else ""
    return Entry(
        f"linear_logprobs {n} tokens, hidden {h}, vocabulary {v}, {variant}{kept}",
        linear_logprobs.LINEAR_LOGPROBS,
        linear_logprobs.Options(),
        operands,
        ours,
        peers,
        vendors,
        step=True,
        outputs=("logp",) if alone else None,
        compiled=keep == "auto",
        target={} if target is None else {BOTH: target},
        memory=memory,
    )

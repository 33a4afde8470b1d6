"""DPO on a language model's head, with a reference model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from benchmarks.entries.heads import gradient_of_logits, head, labels, plain_logp
from benchmarks.entries.logprobs import trl_logp
from benchmarks.entry import BOTH, Entry, Operands
from benchmarks.providers import EAGER, LIGER, Function, peer
from liger_torch import chunked_loss

BETA = 0.1


def _dpo(logp: Function) -> Function:
    """Rafailov et al., arXiv:2305.18290, of a function that gives the log-probabilities of tokens."""

    def loss(
        x: torch.Tensor, w: torch.Tensor, ids: torch.Tensor, ref_x: torch.Tensor, ref_w: torch.Tensor
    ) -> torch.Tensor:
        with torch.no_grad():
            reference = logp(ref_x, ref_w, ids)
        ratio = (logp(x, w, ids) - reference).sum(-1)
        chosen, rejected = ratio.chunk(2)
        return -F.logsigmoid(BETA * (chosen - rejected)).mean()

    return loss


def flat(logp: Function) -> Function:
    """A function of (tokens, hidden) on (answers, tokens, hidden)."""
    return lambda x, w, ids: logp(x.flatten(0, 1), w, ids.flatten()).view(ids.shape)


def entry(pairs: int, tokens: int, h: int, v: int) -> Entry:
    """Pairs of answers, the chosen ones first."""
    n = 2 * pairs * tokens

    def operands() -> Operands:
        x, w = head(n, h, v)
        ref_x, ref_w = (t.detach() for t in head(n, h, v))
        x, ref_x = (t.detach().view(2 * pairs, tokens, h) for t in (x, ref_x))
        return x.requires_grad_(), w, labels(n, v).view(2 * pairs, tokens), ref_x, ref_w

    def few(operands: Operands) -> Operands:
        """One pair, a few tokens."""
        x, w, ids, ref_x, ref_w = operands
        assert x is not None and ids is not None and ref_x is not None
        shorter = (t.detach()[[0, pairs], :24].clone() for t in (x, ids, ref_x))
        x, ids, ref_x = shorter
        return x.requires_grad_(), w, ids, ref_x, ref_w

    def products(
        x: torch.Tensor, w: torch.Tensor, _: torch.Tensor, ref_x: torch.Tensor, ref_w: torch.Tensor
    ) -> Callable[[], object]:
        """The reference's logits, the policy's, and two gradients."""
        a, b = x.flatten(0, 1), ref_x.flatten(0, 1)
        d = gradient_of_logits(a, w)
        return lambda: (b @ ref_w.t(), a @ w.t(), d @ w, d.t() @ a)

    theirs = peer(LIGER, "liger_kernel.chunked_loss.LigerFusedLinearDPOLoss")
    return Entry(
        f"dpo {pairs} pairs of {tokens} tokens, hidden {h}, vocabulary {v}, reference model",
        None,
        None,
        operands,
        lambda x, w, ids, ref_x, ref_w: chunked_loss.liger_fused_linear_dpo(
            x, w, ids, ref_input=ref_x, ref_weight=ref_w, beta=BETA
        )[0],
        {
            EAGER: _dpo(plain_logp),
            # Their module takes (weight, input, target): what a trainer calls, compiled by default. It marks the
            # target's length as dynamic, with which others could not be compiled any more: it has a view to mark.
            LIGER: lambda x, w, ids, ref_x, ref_w: theirs(beta=BETA)(
                w, x, ids.view_as(ids), ref_input=ref_x, ref_weight=ref_w
            )[0],
            "trl": _dpo(flat(trl_logp())),
        },
        products,
        step=True,
        reference=_dpo(plain_logp),
        few=few,
        ahead={(LIGER, BOTH): 1.2},
        lean={LIGER: 0.5},
        memory=True,
    )


def entries() -> Iterator[Entry]:
    """The head of Llama 3."""
    yield entry(4, 1024, 4096, 128_256)

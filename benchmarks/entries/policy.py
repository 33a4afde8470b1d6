"""GRPO on a language model's head, without a reference model."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.entries.heads import head, labels, plain_logp, products
from benchmarks.entries.logprobs import trl_logp
from benchmarks.entries.preference import flat
from benchmarks.entry import BOTH, Entry, Operands
from benchmarks.providers import EAGER, LIGER, Function, peer
from liger_torch import chunked_loss

CLIP = 0.2


def _grpo(logp: Function) -> Function:
    """The clipped ratio of probabilities by the advantage, a mean over tokens (DAPO, arXiv:2503.14476)."""

    def loss(
        x: torch.Tensor, w: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, advantages: torch.Tensor
    ) -> torch.Tensor:
        found = logp(x, w, ids)
        ratio = (found - found.detach()).exp()
        gain = advantages[:, None].to(ratio.dtype)
        gain = torch.minimum(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain)
        return -(gain * mask).sum() / mask.sum()

    return loss


def entry(answers: int, tokens: int, h: int, v: int, ahead: float | None = None) -> Entry:
    """Answers that the policy itself gave, all of one length."""
    n = answers * tokens

    def operands() -> Operands:
        x, w = head(n, h, v)
        ids = labels(n, v).view(answers, tokens)
        mask, advantages = torch.ones(answers, tokens), torch.randn(answers)
        return x.detach().view(answers, tokens, h).requires_grad_(), w, ids, mask, advantages

    def few(operands: Operands) -> Operands:
        """Two answers, a few tokens."""
        x, w, ids, mask, advantages = operands
        assert x is not None and ids is not None and mask is not None and advantages is not None
        x, ids, mask = (t.detach()[:2, :24].clone() for t in (x, ids, mask))
        return x.requires_grad_(), w, ids, mask, advantages[:2]

    theirs = peer(LIGER, "liger_kernel.chunked_loss.LigerFusedLinearGRPOLoss")
    return Entry(
        f"grpo {answers} answers of {tokens} tokens, hidden {h}, vocabulary {v}",
        None,
        None,
        operands,
        lambda x, w, ids, mask, advantages: chunked_loss.liger_fused_linear_grpo(
            x, w, ids, mask, advantages, beta=0.0, use_ref_model=False
        )[0],
        {
            EAGER: _grpo(plain_logp),
            # Compiled, it fails at a second shape (torch 2.11), and the gate's comes first.
            LIGER: lambda x, w, ids, mask, advantages: theirs(
                beta=0.0, use_ref_model=False, loss_type="dapo", compiled=False
            )(x, w, ids, mask, advantages)[0],
            "trl": _grpo(flat(trl_logp())),
        },
        lambda x, w, *_: products(x.flatten(0, 1), w),
        step=True,
        reference=_grpo(plain_logp),
        few=few,
        ahead={} if ahead is None else {(LIGER, BOTH): ahead},
        memory=True,
    )


def entries() -> Iterator[Entry]:
    """The head of Llama 3."""
    yield entry(8, 1024, 4096, 128_256, ahead=8.0)

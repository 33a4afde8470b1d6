"""Losses of pairs and answers at a size where they go group by group by default: as exact as with all logits kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint

from liger import losses
from liger_torch import chunked_loss
from liger_triton import linear_logprobs

pytestmark = pytest.mark.gpu

ANSWERS, TOKENS, HIDDEN, VOCAB = 8, 1024, 256, 128_256
Gradients = tuple[torch.Tensor, ...]


def _drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    ids = torch.randint(0, VOCAB, (ANSWERS, TOKENS), generator=generator, device="cuda")
    ids[0, :500], ids[5, 300:] = -100, -100
    x, weight = normal(ANSWERS, TOKENS, HIDDEN), normal(VOCAB, HIDDEN) * 0.05
    return x.requires_grad_(), weight.requires_grad_(), ids


def _dpo(logp: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return losses.dpo(*losses.pair_logps(logp, mask, average=False), beta=0.1).loss.mean()


def _grpo(logp: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    advantages = torch.linspace(-1, 2, ANSWERS, device=logp.device, dtype=logp.dtype)
    return losses.grpo(logp, mask, advantages, loss_type="grpo", beta=0.0).loss


def _of_head(kind: str, **options: object) -> Callable[..., torch.Tensor]:
    def dpo(x: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        loss = chunked_loss.LigerFusedLinearDPOLoss(beta=0.1, use_ref_model=False, **options)  # type: ignore[arg-type]
        return loss(weight, x, ids)[0]

    def grpo(x: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        loss = chunked_loss.LigerFusedLinearGRPOLoss(
            loss_type="grpo", beta=0.0, use_ref_model=False, **options  # type: ignore[arg-type]
        )  # fmt: skip
        advantages = torch.linspace(-1, 2, ANSWERS, device="cuda")
        return loss(x, weight, ids.clamp(min=0), ids != -100, advantages)[0]

    return {"dpo": dpo, "grpo": grpo}[kind]


def _gradients(loss: Callable[..., torch.Tensor]) -> Gradients:
    x, weight, ids = _drawn()
    value = loss(x, weight, ids)
    return value.detach(), *torch.autograd.grad(value, (x, weight))


def _exact(of_logp: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Gradients:
    """From float64 logits, an answer at a time."""

    def loss(x: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        def logp(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            logits = F.linear(x, weight.double())
            found = logits.gather(-1, ids.clamp(min=0)[..., None])[..., 0] - logits.logsumexp(-1)
            return torch.where(ids == -100, 0.0, found)

        checkpoint = torch.utils.checkpoint.checkpoint
        rows = [checkpoint(logp, x[i].double(), ids[i], use_reentrant=False) for i in range(ANSWERS)]
        return of_logp(torch.stack(rows), ids != -100)

    return _gradients(loss)


@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_by_group_is_as_exact_as_with_all_logits_kept(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks: list[int] = []
    by_group = linear_logprobs.gradients_by_group

    def spy(*arguments: object) -> object:
        chunks.append(len(arguments[4]))  # type: ignore[arg-type]
        return by_group(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(linear_logprobs, "gradients_by_group", spy)
    exact = _exact({"dpo": _dpo, "grpo": _grpo}[kind])
    kept = _gradients(_of_head(kind, keep_logits=True))
    assert not chunks
    found = _gradients(_of_head(kind))
    assert len(chunks) == 1 and chunks[0] > 1
    again = _gradients(_of_head(kind))
    for ours, other, truth, second in zip(found, kept, exact, again, strict=True):
        errors = [((a.double() - truth).norm() / truth.norm()).item() for a in (ours, other)]
        # One more rounding of the weight's gradient for each further chunk; see linear_chunks.MAX_ROUNDED_SUMS.
        assert errors[0] <= 2 * errors[1] + 1e-6, errors
        assert torch.equal(ours, second), "the same inputs gave other bits"

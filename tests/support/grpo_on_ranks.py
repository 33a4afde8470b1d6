"""One step of GRPO's losses on answers that two processes share, whose numbers of tokens differ."""

from __future__ import annotations

import torch

from liger_torch.chunked_loss import LigerFusedLinearGRPOLoss

NORMALISERS = {"tokens of all": None, "given": 20, "given as a tensor": torch.tensor(20)}


def step(answers: slice) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Loss and gradient of the head, for each way to say what is divided by."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=generator) for shape in ((4, 6, 8), (11, 8)))
    ids, advantages = torch.randint(0, 11, (4, 6), generator=generator), torch.tensor([1.0, -2.0, 0.5, 1.5])
    mask = torch.arange(6) < torch.tensor([6, 5, 2, 1])[:, None]
    loss, found = LigerFusedLinearGRPOLoss(beta=0.0, loss_type="dapo"), {}
    for name, items in NORMALISERS.items():
        head = weight.clone().requires_grad_()
        arguments = (t[answers] for t in (ids, mask, advantages))
        value, _ = loss(x[answers], head, *arguments, num_items_in_batch=items)
        found[name] = value.detach(), torch.autograd.grad(value, head)[0]
    return found


def on_rank(rank: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Of this rank's two answers."""
    return step(slice(2 * rank, 2 * rank + 2))

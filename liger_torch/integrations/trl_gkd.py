"""The divergence of TRL's trainer of generalised knowledge distillation (GKD) by `liger_jsd`.

    from liger_torch.integrations import trl_gkd

    trl_gkd.install()
    trainer = trl.experimental.gkd.GKDTrainer(...)

TRL makes several arrays of a number per token and word on the way from the two models' logits to their divergence; the
op makes their gradient alone. The logits themselves stay the models' own. `LigerFusedLinearJSDLoss` of
`liger_torch.chunked_loss`, in a loop of one's own, does without them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from liger_torch.functional import liger_jsd

_MODULE, _CLASS, _NAME = "trl.experimental.gkd.gkd_trainer", "GKDTrainer", "generalized_jsd_loss"

IGNORED = -100


class JSDLoss:
    """Is called as TRL's function is.

    Attributes:
        original: TRL's own, for what is left to it.
    """

    def __init__(self, original: Callable[..., torch.Tensor]) -> None:
        self.original = original

    def __call__(
        self,
        student_logits: torch.Tensor,
        teacher_logits: torch.Tensor,
        labels: torch.Tensor | None = None,
        beta: float = 0.5,
        temperature: float = 1.0,
        reduction: str = "batchmean",
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The divergence of `liger_jsd`, summed, and divided as TRL divides it.

        Args:
            student_logits: (batch, tokens, vocab).
            teacher_logits: likewise.
            labels: (batch, tokens), -100 at the tokens that do not count.
            beta: in [0, 1].
            temperature: divides the logits.
            reduction: "batchmean" divides by the tokens that count, or without labels by the batch; "sum"; any other
                one is of single words, and left to TRL's function.
            num_items_in_batch: divides the sum, whatever `reduction` is.
        """
        if num_items_in_batch is None and reduction not in ("batchmean", "sum"):
            return self.original(student_logits, teacher_logits, labels, beta, temperature, reduction)
        total = liger_jsd(
            student_logits,
            teacher_logits,
            labels,
            beta,
            IGNORED,
            reduction="sum",
            from_logits=True,
            temperature=temperature,
        )
        if isinstance(num_items_in_batch, torch.Tensor):
            return total / num_items_in_batch.to(total.device)
        if num_items_in_batch is not None:
            return total / num_items_in_batch
        if reduction == "sum":
            return total
        if labels is None:
            return total / max(student_logits.shape[0], 1)
        return total / (labels != IGNORED).sum().clamp(min=1)


class Installed:
    """The function in TRL's place; made by `install`."""

    def __init__(self, trainer: type, original: Callable[..., torch.Tensor]) -> None:
        self.trainer, self.function = trainer, JSDLoss(original)
        # An instance that is no function does not bind to the trainer, as TRL's static method does not.
        setattr(trainer, _NAME, self.function)

    def remove(self) -> None:
        """Give TRL its own function back; does nothing the second time, or where another has taken the place since."""
        if getattr(self.trainer, _NAME) is self.function:
            setattr(self.trainer, _NAME, staticmethod(self.function.original))


def install() -> Installed:
    """Let TRL's `GKDTrainer`, in this process, take its divergence from `liger_jsd`.

    Returns:
        What `remove()` ends it.

    Raises:
        ModuleNotFoundError: TRL is not installed.
        RuntimeError: this version of TRL has no such function, or the function is in its place already.
    """
    trainer: Any = getattr(importlib.import_module(_MODULE), _CLASS)
    current = getattr(trainer, _NAME, None)
    if current is None:
        version = importlib.import_module("trl").__version__
        raise RuntimeError(f"TRL {version} has no {_CLASS}.{_NAME}; 1.16 has it.")
    if isinstance(current, JSDLoss):
        raise RuntimeError(
            f"{_CLASS}.{_NAME} is this package's already; call remove() on what install() returned."
        )
    return Installed(trainer, current)

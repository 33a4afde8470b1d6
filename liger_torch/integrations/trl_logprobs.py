"""TRL's log-probabilities of tokens by `fused_linear_logprobs`.

    from liger_torch.integrations import trl_logprobs

    trl_logprobs.install()
    trainer = trl.SFTTrainer(...)

From 1.15 on, TRL's trainers compute their losses from what one function gives for each token,
`trl.kernels.ChunkedLogProbFunction`; it is exchanged where they look it up. Logits of the whole batch are held by
neither. What is kept between the passes, and how often the logits are computed, is said in `fused_linear_logprobs`.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from liger_torch.functional import fused_linear_logprobs

_MODULE, _NAME = "trl.trainer.utils", "_ChunkedLogProbFunction"

OUTPUTS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
"""What TRL may ask for beside the log-probability."""

_STATISTICS = ("log_sum_sq_probs", "mean_logits")


class LogProbFunction:
    """Has the `apply` of TRL's function.

    Attributes:
        original: TRL's own, for what is left to it.
    """

    def __init__(self, original: Any) -> None:
        self.original = original

    def apply(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = OUTPUTS,
    ) -> tuple[torch.Tensor | None, ...]:
        """(log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1), None for what is not in `outputs`.

        With z = cap(logit_scale * (hidden @ weight^T + bias)) / temperature and p = softmax(z):

            log_probs        = log p_target
            entropy          = -sum_j p_j log p_j
            log_sum_sq_probs = log sum_j p_j^2
            mean_logits      = mean_j z_j
            is_top1          = whether the target is the first of the highest logits

        The first two have gradients. The next two are made by TRL's own function, at the cost of one more product: they
        are for logging. So is everything where DeepSpeed has divided the head's weight (ZeRO-3), because TRL's function
        gathers it again in the backward pass.

        Args:
            hidden: (tokens, hidden).
            weight: (vocab, hidden).
            bias: (vocab,).
            targets: (tokens,).
            temperature: divides the logits.
            chunk_size: columns at a time, for TRL's own function; `fused_linear_logprobs` chooses its chunks itself.
            final_logit_softcapping: cap of the logits' magnitude.
            logit_scale: multiplies the logits before the cap.
            outputs: which of the last four to compute.
        """
        rest = (temperature, chunk_size, final_logit_softcapping, logit_scale)
        if hasattr(weight, "ds_id"):
            return self.original.apply(hidden, weight, bias, targets, *rest, outputs)
        # As TRL does: the head follows the hidden states' dtype, which its trainers may have cast to float32.
        found = fused_linear_logprobs(
            hidden,
            weight.to(hidden.dtype),
            targets,
            None if bias is None else bias.to(hidden.dtype),
            temperature,
            final_logit_softcapping,
            scale=logit_scale,
            differentiable=("logp", "entropy") if "entropy" in outputs else ("logp",),
            return_predicted="is_top1" in outputs,
        )
        statistics: tuple[torch.Tensor | None, ...] = (None, None)
        wanted = tuple(name for name in _STATISTICS if name in outputs)
        if wanted:
            with torch.no_grad():
                statistics = self.original.apply(hidden, weight, bias, targets, *rest, wanted)[2:4]
        return (
            found.logp,
            found.entropy if "entropy" in outputs else None,
            *statistics,
            None if found.predicted is None else found.predicted == targets,
        )


class Installed:
    """The function in TRL's place; made by `install`."""

    def __init__(self, module: Any) -> None:
        self.module, self.function = module, LogProbFunction(getattr(module, _NAME))
        setattr(module, _NAME, self.function)

    def remove(self) -> None:
        """Give TRL its own function back; does nothing the second time, or where another has taken the place since."""
        if getattr(self.module, _NAME) is self.function:
            setattr(self.module, _NAME, self.function.original)


def install() -> Installed:
    """Let TRL's trainers, in this process, take their log-probabilities from `fused_linear_logprobs`.

    Returns:
        What `remove()` ends it.

    Raises:
        ModuleNotFoundError: TRL is not installed.
        RuntimeError: this version of TRL has no such function, or the function is in its place already.
    """
    module = importlib.import_module(_MODULE)
    current = getattr(module, _NAME, None)
    if current is None:
        version = importlib.import_module("trl").__version__
        raise RuntimeError(
            f"TRL {version} has no {_MODULE}.{_NAME}; 1.15 and later ones that were seen have it."
        )
    if isinstance(current, LogProbFunction):
        raise RuntimeError(
            f"{_MODULE}.{_NAME} is this package's already; call remove() on what install() returned."
        )
    return Installed(module)

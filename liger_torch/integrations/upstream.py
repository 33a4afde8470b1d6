"""What tools import from liger-kernel and this package has under other names, or does in another way."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import torch
from torch import nn

from liger_torch.functional import CrossEntropyOutput, fused_linear_logprobs, liger_fused_linear_cross_entropy
from liger_torch.hf import PatchReport, PendingPatch, apply_liger_kernel
from liger_torch.hf.families import (
    FAMILIES,
    PREFIX,
    FamilyFunction,
    arguments_of,
    asked_for,
    made_function,
    model_types,
)

__all__ = ["MODEL_TYPE_TO_APPLY_LIGER_FN", "_apply_liger_kernel", "_apply_liger_kernel_to_instance"]
__all__ += [PREFIX + family for family in FAMILIES]


def _apply_liger_kernel_to_instance(model: nn.Module, **kwargs: bool) -> PatchReport:
    """Patch a model of any family.

    Args:
        model: the model.
        kwargs: arguments of `apply_liger_kernel_to_<family>`, of whichever family.

    Raises:
        TypeError: an argument that none of these functions has.
        ValueError: arguments that exclude each other.
    """
    parts = asked_for("_apply_liger_kernel_to_instance", kwargs)
    return apply_liger_kernel(model, **dataclasses.asdict(parts))


def _apply_liger_kernel(model_type: str, **kwargs: bool) -> PatchReport | PendingPatch:
    """Patch the models of a family that are built from now on.

    Raises:
        TypeError: an argument that the family's function does not have.
        ValueError: a model type that transformers does not have; arguments that exclude each other.
    """
    return _by_keyword(model_type)(**kwargs)


@functools.cache
def _by_keyword(family: str) -> FamilyFunction:
    """`apply_liger_kernel_to_<family>`. By position, upstream's arguments would come in another order than ours."""
    return made_function(family, arguments_of(family), inspect.Parameter.KEYWORD_ONLY)


MODEL_TYPE_TO_APPLY_LIGER_FN = {t: _by_keyword(family) for family in FAMILIES for t in model_types(family)}
MODEL_TYPE_TO_APPLY_LIGER_FN |= {family: _by_keyword(family) for family in FAMILIES if model_types(family)}


def __getattr__(name: str) -> Any:
    family = name.removeprefix(PREFIX)
    if family != name and family in FAMILIES:
        return _by_keyword(family)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_LOSS_OPTIONS = inspect.signature(liger_fused_linear_cross_entropy).parameters


def LigerForCausalLMLoss(
    hidden_states: torch.Tensor,
    lm_head_weight: torch.Tensor,
    labels: torch.Tensor,
    hidden_size: int,
    num_items_in_batch: int | torch.Tensor | None = None,
    ignore_index: int = -100,
    shift_labels: torch.Tensor | None = None,
    final_logit_softcapping: float | None = None,
    return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False,
    **kwargs: Any,
) -> torch.Tensor | CrossEntropyOutput:
    """The loss of a causal language model from its last hidden states: position t is to predict label t + 1.

    Args:
        hidden_states: (..., tokens, hidden).
        lm_head_weight: (vocab, hidden).
        labels: (..., tokens).
        hidden_size: hidden.
        num_items_in_batch: what the sum of the tokens' losses is divided by; by default the number of labels.
        ignore_index: label of tokens that are left out.
        shift_labels: (..., tokens): labels that are shifted already.
        final_logit_softcapping: cap of the logits' magnitude.
        return_token_accuracy: return a `CrossEntropyOutput` with the share of labels that have the highest logit.
        return_predicted_tokens: return one with the indices of the highest logits.
        kwargs: options of `liger_fused_linear_cross_entropy`. What else a model's forward was called with may be
            among them, as in transformers' loss functions, and is not looked at.
    """
    options = {name: value for name, value in kwargs.items() if name in _LOSS_OPTIONS}
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    result: Any = liger_fused_linear_cross_entropy(
        hidden_states.reshape(-1, hidden_size),
        lm_head_weight,
        shift_labels.reshape(-1).to(hidden_states.device),
        reduction="mean" if num_items_in_batch is None else "sum",
        ignore_index=ignore_index,
        softcap=final_logit_softcapping,
        return_token_accuracy=return_token_accuracy,
        return_predicted_tokens=return_predicted_tokens,
        **options,
    )
    if num_items_in_batch is None:
        return result
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(hidden_states.device)
    if isinstance(result, CrossEntropyOutput):
        return dataclasses.replace(result, loss=result.loss / num_items_in_batch)
    return result / num_items_in_batch


class LigerFusedLinearScaledCrossEntropyFunction:
    """Loss and entropy of each token, as verl calls it; see `liger_torch.fused_linear_logprobs`."""

    @staticmethod
    def apply(
        _input: torch.Tensor,
        weight: torch.Tensor,
        target: torch.Tensor,
        temperature: float = 1.0,
        ignore_index: int = -100,
        m_tiles_per_cluster: int = 1,
        return_entropy: bool = False,
        selected_token_ids: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """-logp of the targets, float32, 0 where they are ignored, and the entropy if asked for.

        Args:
            _input: (tokens, hidden).
            weight: (vocab, hidden).
            target: (tokens,).
            temperature: divides the logits.
            ignore_index: tokens with this target have zeros, and no gradient.
            m_tiles_per_cluster: a setting of upstream's kernel; 1.
            return_entropy: return the entropy too.
            selected_token_ids: None.

        Raises:
            ValueError: a setting of upstream's kernel other than 1; selected_token_ids.
        """
        for name, value, only in (
            ("m_tiles_per_cluster", m_tiles_per_cluster, 1),
            ("selected_token_ids", selected_token_ids, None),
        ):
            if value is not only and value != only:
                raise ValueError(
                    f"LigerFusedLinearScaledCrossEntropyFunction: {name} must be {only} in the alias of liger_kernel; "
                    "liger_torch.fused_linear_logprobs has the options of this package."
                )
        found = fused_linear_logprobs(
            _input,
            weight,
            target,
            temperature=temperature,
            ignore_index=ignore_index,
            differentiable=("logp", "entropy") if return_entropy else ("logp",),
        )
        return (-found.logp, found.entropy) if return_entropy else -found.logp

"""What the losses refuse, and what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from liger import losses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "kto"}, "dpo: loss_type is 'kto'; choose one of 'sigmoid'"),
        ({"beta": 0.0}, "dpo: beta is 0.0; it must be positive"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, r"dpo: label_smoothing is 0.5; expected a number in \[0, 0.5\)"),
        ({"loss_type": "exo_pair"}, "dpo: label_smoothing is 0 with loss_type=\"exo_pair\", which takes its logarithm"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "dpo: label_smoothing is 0.1 with loss_type='hinge', which has none"),
        ({"loss_type": "nca_pair", "f_divergence": "forward_kl"}, "dpo: f_divergence is 'forward_kl' with loss_type='nca_pair'"),
        ({"loss_type": "sft"}, "dpo: lengths is None with loss_type=\"sft\""),
    ],
)  # fmt: skip
def test_messages(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses.dpo(torch.zeros(2), torch.zeros(2), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "ppo"}, "grpo: loss_type is 'ppo'; choose one of 'grpo'"),
        ({"importance_sampling_level": "word"}, "grpo: importance_sampling_level is 'word'; choose one of 'token'"),
        ({"loss_type": "dr_grpo"}, "grpo: max_completion_length is None with loss_type=\"dr_grpo\""),
        ({"loss_type": "cispo", "delta": 2.0}, "grpo: delta is 2.0 with loss_type='cispo', which has no two-sided"),
        ({"loss_type": "vespo", "importance_sampling_level": "sequence"}, "grpo: importance_sampling_level is \"sequence\""),
        ({"beta": 0.1}, "grpo: ref_logp is None with beta=0.1"),
        ({"entropy_coef": 0.1}, "grpo: entropy is None with entropy_coef=0.1"),
        ({"loss_type": "sapo", "sapo_temperature_neg": 0.0}, "grpo: sapo_temperature_neg is 0.0; it must be positive"),
        ({"epsilon_low": -0.5}, "grpo: epsilon_low is -0.5; it must be at least 0"),
        ({"epsilon_high": -2.0}, "grpo: epsilon_high is -2.0; it must be at least 0"),
        ({"num_items": -3.0}, "grpo: num_items is -3.0; it must be a finite number of at least 0"),
        ({"loss_type": "dr_grpo", "max_completion_length": 0}, "grpo: max_completion_length is 0; it must be positive"),
    ],
)  # fmt: skip
def test_messages_of_grpo(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses.grpo(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.ones(2), **options)


def test_an_option_that_is_no_number_is_named() -> None:
    with pytest.raises(TypeError, match="dpo: beta is None; it must be a number"):
        losses.dpo(torch.zeros(2), torch.zeros(2), beta=None)  # type: ignore[arg-type]


def test_messages_of_kto_and_sft() -> None:
    with pytest.raises(
        ValueError, match="kto: kl is given with loss_type='apo_zero_unpaired', which has none"
    ):
        losses.kto(torch.zeros(2), torch.ones(2).bool(), kl=torch.zeros(()), loss_type="apo_zero_unpaired")
    with pytest.raises(ValueError, match=r"sft: lse is None with z_loss=0\.1"):
        losses.sft(torch.zeros(2, 3), torch.ones(2, 3).bool(), z_loss=0.1)
    with pytest.raises(ValueError, match=r"sft: num_items is -1; it must be a finite number of at least 0"):
        losses.sft(torch.zeros(2, 3), torch.ones(2, 3).bool(), num_items=-1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: losses.dpo(a[:2], a[:2], a[:1], a[:1]), r"dpo: ref_chosen_logp has shape \(1,\); expected \(2,\)"),
        (lambda a: losses.dpo(a, a[:, None]), r"dpo: rejected_logp has shape \(4, 1\); expected \(4,\)"),
        (lambda a: losses.cpo(a, a[:1]), r"cpo: rejected_logp has shape \(1,\); expected \(4,\)"),
        (lambda a: losses.orpo(a, a[:1]), r"orpo: rejected_logp has shape \(1,\); expected \(4,\)"),
        (lambda a: losses.kto(a, a[:1] > 0), r"kto: good has shape \(1,\); expected \(4,\)"),
        (lambda a: losses.kto(a, a > 0, kl=a[:, None]), r"kto: kl has shape \(4, 1\); expected \(\) or \(1,\) or \(4,\)"),
        (lambda a: losses.grpo(a.expand(4, 4), a.expand(4, 4) < 9, a, old_logp=a), r"grpo: old_logp has shape \(4,\); expected \(4, 4\)"),
        (lambda a: losses.grpo(a.expand(3, 4), a.expand(3, 4) < 9, a), r"grpo: advantages has shape \(4,\); expected \(3,\) or \(3, 1\) or \(3, 4\)"),
        (lambda a: losses.grpo(a.expand(4, 4), a.expand(4, 4) < 9, a, weights=a), r"grpo: weights has shape \(4,\); expected \(4, 1\) or \(4, 4\)"),
        (lambda a: losses.top_k_divergence(a.expand(3, 5, 4), torch.zeros(1, 5, 2).long(), a[None, :1, None].expand(1, 5, 2)), r"ids have shape \(1, 5, 2\), teacher_logp \(1, 5, 2\), student \(3, 5, 4\)"),
    ],
)  # fmt: skip
def test_no_array_spreads_over_others(call: Callable[..., Any], message: str) -> None:
    """Each of these would be broadcast, and the loss be another."""
    with pytest.raises(ValueError, match=message):
        call(-torch.arange(4.0))

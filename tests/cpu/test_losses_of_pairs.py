"""Losses of pairs of answers and of single ones: TRL's own code."""

from __future__ import annotations

import inspect
import types
from collections import defaultdict
from typing import Any

import pytest
import torch
from loss_arrays import PAIRS, SMOOTHING, TOKENS, completions, draw, needs_trl, recorder, same

from liger import losses


def trl_dpo(logp: torch.Tensor, ref_logp: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
    """The loss of TRL's DPOTrainer of given log-probabilities of tokens: its method on what little it uses."""
    from trl.trainer.dpo_trainer import DPOTrainer

    settings = {
        "loss_types": [options.pop("loss_type")],
        "loss_weights": [1.0],
        "beta": 0.1,
        "label_smoothing": 0.0,
        "f_divergence_type": options.pop("f_divergence", "reverse_kl"),
        "f_alpha_divergence_coef": options.pop("f_alpha", 1.0),
        "args": types.SimpleNamespace(discopop_tau=options.pop("discopop_tau", 0.05)),
        "ld_alpha": None,
        "precompute_ref_logps": True,
        "use_weighting": False,
    } | options
    log_sum_sq_probs = settings.pop("log_sum_sq_probs", None)
    stub = types.SimpleNamespace(
        **settings,
        accelerator=recorder(),
        aux_loss_enabled=False,
        model=types.SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    # The first column is the token that nothing predicts.
    whole = torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1)
    ref_chosen, ref_rejected = (ref_logp * mask).sum(1).chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(whole, dtype=torch.int64),
        "attention_mask": torch.ones_like(whole),
        "completion_mask": whole.long(),
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    nothing = torch.zeros_like(logp)
    outputs = types.SimpleNamespace(
        log_probs=logp * mask, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool(),
        log_sum_sq_probs=log_sum_sq_probs,
    )  # fmt: skip

    def model(**_: Any) -> Any:
        return outputs

    model.training = True  # type: ignore[attr-defined]
    return DPOTrainer._compute_loss(stub, model, inputs, False)


def our_dpo(logp: torch.Tensor, ref_logp: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
    chosen, rejected = losses.pair_logps(logp, mask, average=False)
    ref_chosen, ref_rejected = losses.pair_logps(ref_logp, mask, average=False)
    lengths = losses.halves(losses.lengths(mask, logp))
    return losses.dpo(chosen, rejected, ref_chosen, ref_rejected, lengths=lengths, **options).loss.mean()


def options_of_dpo() -> list[dict[str, Any]]:
    plain = [{"loss_type": name, "label_smoothing": SMOOTHING.get(name, 0.0)} for name in losses.DPO_LOSSES]
    diverging = [
        {
            "loss_type": name,
            "label_smoothing": SMOOTHING.get(name, 0.0),
            "f_divergence": divergence,
            "f_alpha": 0.5,
        }
        for name in ("sigmoid", "hinge", "ipo", "robust", "discopop", "sigmoid_norm", "exo_pair")
        for divergence in losses.F_DIVERGENCES[1:]
    ]
    return plain + diverging


@needs_trl
@pytest.mark.parametrize("options", options_of_dpo(), ids=lambda o: "-".join(map(str, o.values())))
def test_dpo_equals_trl(options: dict[str, Any]) -> None:
    logp, ref = -draw(2 * PAIRS, TOKENS, seed=0).abs(), -draw(2 * PAIRS, TOKENS, seed=1).abs()
    mask, tolerance = completions(), 1e-11
    if options.get("f_divergence") == "alpha_divergence":  # TRL's has no float64
        logp, ref, tolerance = logp.float(), ref.float(), 2e-6
    if options["loss_type"] == "exo_pair":  # TRL's holds the label smoothing in float32
        tolerance = 2e-6
    logp.requires_grad_()
    ours, theirs = (f(logp, ref, mask, beta=0.3, **options) for f in (our_dpo, trl_dpo))
    same(ours, theirs, logp, tolerance=tolerance)


@needs_trl
@pytest.mark.parametrize("ld_alpha", [0.0, 0.4, 1.0])
def test_ld_dpo_equals_trl(ld_alpha: float) -> None:
    logp, ref = -draw(2 * PAIRS, TOKENS, seed=0).abs(), -draw(2 * PAIRS, TOKENS, seed=1).abs()
    mask = completions()
    logp.requires_grad_()
    # TRL is given sums for the reference model: those that its own step before the training made.
    policy, reference = (losses.desensitized_pair_logps(a, mask, ld_alpha=ld_alpha) for a in (logp, ref))
    ours = losses.dpo(*policy, *reference, beta=0.3).loss.mean()
    as_sums = torch.zeros_like(ref)
    as_sums[torch.arange(2 * PAIRS), mask.int().argmax(1)] = torch.cat(reference)
    same(ours, trl_dpo(logp, as_sums, mask, loss_type="sigmoid", beta=0.3, ld_alpha=ld_alpha), logp)
    if ld_alpha == 1:
        torch.testing.assert_close(policy, losses.pair_logps(logp, mask, average=False))


@needs_trl
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_wpo_equals_trl(loss_type: str) -> None:
    logits, ref = draw(2 * PAIRS, TOKENS, 7, seed=0), -draw(2 * PAIRS, TOKENS, seed=1).abs()
    mask, logp = completions(), logits.log_softmax(-1)[..., 0].requires_grad_()
    squares = (2 * logits).logsumexp(-1) - 2 * logits.logsumexp(-1)
    torch.testing.assert_close(squares, logits.softmax(-1).square().sum(-1).log())
    chosen, rejected = losses.pair_logps(logp, mask, average=False)
    lengths = losses.halves(losses.lengths(mask, logp))
    reference = losses.pair_logps(ref, mask, average=False)
    found = losses.dpo(chosen, rejected, *reference, loss_type=loss_type, beta=0.3, lengths=lengths).loss
    ours = (found * losses.wpo_weights(logp, mask, squares)).mean()
    theirs = trl_dpo(
        logp, ref, mask, loss_type=loss_type, beta=0.3, use_weighting=True, log_sum_sq_probs=squares
    )
    same(ours, theirs, logp)


@needs_trl
def test_every_variant_of_trls_dpo_is_here() -> None:
    from trl.trainer.dpo_trainer import DPOTrainer

    source = inspect.getsource(DPOTrainer._compute_loss)
    named = {line.split('"')[1] for line in source.splitlines() if "if loss_type ==" in line}
    assert len(named) > 10
    assert named <= set(losses.DPO_LOSSES)


@needs_trl
@pytest.mark.parametrize("loss_type", losses.CPO_LOSSES)
@pytest.mark.parametrize("reward_alpha", [0.0, 0.25])
def test_cpo_and_simpo_equal_trl(loss_type: str, reward_alpha: float) -> None:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    smoothing = 0.1 if loss_type in ("sigmoid", "simpo") else 0.0
    stub = types.SimpleNamespace(
        beta=0.7, alpha=reward_alpha, loss_type=loss_type, label_smoothing=smoothing, simpo_gamma=0.4,
        accelerator=types.SimpleNamespace(device="cpu"),
    )  # fmt: skip
    chosen, rejected = ((-draw(PAIRS, seed=s).abs()).requires_grad_() for s in (0, 1))
    theirs, *rewards = CPOTrainer.cpo_loss(stub, chosen, rejected)
    ours = losses.cpo(
        chosen,
        rejected,
        loss_type=loss_type,
        beta=0.7,
        label_smoothing=smoothing,
        gamma=0.4,
        reward_alpha=reward_alpha,
    )
    same(ours.loss.sum(), theirs.sum(), chosen, rejected)
    torch.testing.assert_close(ours[1:], tuple(rewards))
    if loss_type == "simpo" and not reward_alpha:
        again = losses.simpo(chosen, rejected, beta=0.7, gamma=0.4, label_smoothing=0.1)
        torch.testing.assert_close(again.loss, theirs)


@needs_trl
def test_orpo_equals_trl() -> None:
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    stub = types.SimpleNamespace(beta=0.3, accelerator=types.SimpleNamespace(device="cpu"))
    chosen, rejected = ((-draw(PAIRS, seed=s).abs()).float().requires_grad_() for s in (0, 1))
    theirs, *rest = ORPOTrainer.odds_ratio_loss(stub, chosen, rejected)
    ours = losses.orpo(chosen, rejected, beta=0.3)
    torch.testing.assert_close(ours.loss, -theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours.loss.sum(), chosen), torch.autograd.grad(-theirs.sum(), chosen)
    )
    torch.testing.assert_close([*ours[1:3], ours[3].mean(), ours[4].mean()], rest)


@pytest.mark.parametrize(("chosen", "rejected"), [(0.0, -1.0), (-1.0, 0.0), (0.0, 0.0)])
def test_orpo_of_certain_answers(chosen: float, rejected: float) -> None:
    """log pi = 0 in float32, as of an answer without tokens: finite, and its odds are no source of a gradient."""
    inputs = [torch.tensor([x], requires_grad=True) for x in (chosen, rejected)]
    value = losses.orpo(*inputs).loss
    for tensor in (value, *torch.autograd.grad(value, inputs)):
        assert torch.isfinite(tensor).all()


@needs_trl
@pytest.mark.parametrize("loss_type", losses.UNPAIRED_LOSSES)
@pytest.mark.parametrize("goods", [(True, False, True, False), (True,) * 4, (False,) * 4])
def test_kto_equals_trl(loss_type: str, goods: tuple[bool, ...]) -> None:
    from trl.trainer.kto_trainer import KTOTrainer

    answers = len(goods)
    logp, ref, kl, ref_kl = (-draw(answers, TOKENS, seed=s).abs() for s in range(4))
    ref_kl = ref_kl - 1  # an estimate above 0, which counts
    logp.requires_grad_()
    nothing = torch.zeros(answers, TOKENS)
    outputs = types.SimpleNamespace(
        log_probs=logp, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
    )
    stub = types.SimpleNamespace(
        accelerator=recorder(), model=types.SimpleNamespace(training=True), aux_loss_enabled=False,
        precompute_ref_logps=True, calculate_KL=loss_type == "kto", loss_type=loss_type, beta=0.3,
        desirable_weight=1.2, undesirable_weight=0.7, _compute_kl_logps=lambda model, batch: kl.sum(1),
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    whole = torch.ones(answers, TOKENS + 1, dtype=torch.int64)
    batch = {
        "input_ids": whole, "attention_mask": whole, "completion_mask": whole, "label": torch.tensor(goods),
        "ref_logps": ref.sum(1), "ref_KL_logps": ref_kl.sum(1),
    }  # fmt: skip
    theirs = KTOTrainer._compute_loss(stub, lambda **_: outputs, batch, False)
    mask = torch.ones(answers, TOKENS, dtype=torch.bool)
    ours = losses.kto(
        losses.sequence_logp(logp, mask), torch.tensor(goods), ref.sum(1),
        kl=losses.kl_estimate(kl.sum(1), ref_kl.sum(1)) if loss_type == "kto" else None,
        loss_type=loss_type, beta=0.3, desirable_weight=1.2, undesirable_weight=0.7,
    )  # fmt: skip
    same(ours.loss.mean(), theirs, logp, tolerance=1e-7 if loss_type != "kto" else 1e-11)


def test_good_is_bool() -> None:
    """Labels of 0 to 1, or of 1 and -1, would all be good."""
    with pytest.raises(TypeError, match=r"kto: good has dtype torch\.float32; it must be bool"):
        losses.kto(torch.zeros(2), torch.tensor([1.0, -1.0]))

"""The algebra of post-training losses: TRL's own code, both frameworks, extreme numbers, messages."""

from __future__ import annotations

import importlib.util
import inspect
import types
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from liger import losses

needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="needs trl (the extra `peers`)"
)

PAIRS, TOKENS = 5, 9


def draw(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def completions(pairs: int = PAIRS, tokens: int = TOKENS) -> torch.Tensor:
    """A mask of answers that begin and end at different places, padding on either side."""
    positions, rows = torch.arange(tokens), torch.arange(2 * pairs)[:, None]
    return (positions >= rows % 3) & (positions < tokens - rows % 4)


def same(ours: torch.Tensor, theirs: torch.Tensor, *inputs: torch.Tensor, tolerance: float = 1e-11) -> None:
    """Value and gradients."""
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


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


SMOOTHING = {"exo_pair": 1e-3, "robust": 0.2, "aot": 0.1, "aot_unpaired": 0.1}


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


def recorder() -> types.SimpleNamespace:
    """What TRL's trainers ask of an accelerator, in one process."""
    return types.SimpleNamespace(
        device="cpu", num_processes=1, sync_gradients=True,
        gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x,
    )  # fmt: skip


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


def trl_grpo(
    arrays: dict[str, torch.Tensor], mask: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, dict]:
    """The loss of TRL's GRPOTrainer of given log-probabilities of tokens, and what it logs."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    settings = {
        "loss_type": "dapo", "importance_sampling_level": "token", "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.28,
        "max_completion_length": 13, "entropy_coef": 0.0,
    }  # fmt: skip
    arguments = {
        "delta": None, "use_bias_correction_kl": False, "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0,
    }  # fmt: skip
    for name, value in options.items():
        (settings if name in settings else arguments)[name] = value
    stub = types.SimpleNamespace(
        **settings,
        args=types.SimpleNamespace(**arguments, steps_per_generation=1),
        accelerator=recorder(), model=types.SimpleNamespace(training=True), aux_loss_enabled=False,
        top_entropy_quantile=0.5 if "high_entropy" in arrays else 1.0, off_policy_mask_threshold=None,
        get_high_entropy_mask=lambda *_: arrays["high_entropy"], use_vllm="sampling_ratio" in arrays,
        vllm_importance_sampling_correction=True, current_gradient_accumulation_steps=1,
        use_adaptive_entropy=False, _entropy_bonus_enabled=settings["entropy_coef"] != 0,
        get_gamma_weights=GRPOTrainer.get_gamma_weights, _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (arrays["logp"], arrays["entropy"], None),
    )  # fmt: skip
    ids = torch.zeros_like(mask, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": mask.long(),
        "advantages": arrays["advantages"], "num_items_in_batch": torch.tensor(17),
    }  # fmt: skip
    inputs |= {
        theirs: arrays[ours]
        for theirs, ours in {
            "old_per_token_logps": "old_logp", "ref_per_token_logps": "ref_logp",
            "importance_sampling_ratio": "sampling_ratio",
        }.items() if ours in arrays
    }  # fmt: skip
    return GRPOTrainer._compute_loss(stub, None, inputs), stub._metrics["train"]


OF_GRPO: list[dict[str, Any]] = [
    *({"loss_type": name} for name in losses.POLICY_LOSSES),
    *({"loss_type": name, "beta": 0.1, "entropy_coef": 0.01} for name in losses.POLICY_LOSSES),
    *(
        {"loss_type": name, "importance_sampling_level": "sequence", "beta": 0.1}
        for name in losses.POLICY_LOSSES if name != "vespo"
    ),
    {"loss_type": "grpo", "delta": 1.4},
    {"loss_type": "dapo", "delta": 1.4, "importance_sampling_level": "sequence"},
    {"loss_type": "dapo", "beta": 0.1, "use_bias_correction_kl": True},
    {"loss_type": "cispo", "epsilon_high": 1.1},
    {"loss_type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0},
    {"loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_pos": 2.5, "vespo_k_neg": 2.0, "vespo_lambda_neg": 1.5},
]  # fmt: skip


@needs_trl
@pytest.mark.parametrize("given", ["nothing", "old", "old and sampling ratio", "high entropy"])
@pytest.mark.parametrize("options", OF_GRPO, ids=lambda o: "-".join(map(str, o.values())))
def test_grpo_equals_trl(options: dict[str, Any], given: str) -> None:
    answers = 6
    positions, rows = torch.arange(TOKENS), torch.arange(answers)[:, None]
    mask = (positions >= rows % 2) & (positions < TOKENS - rows)
    logp = -draw(answers, TOKENS, seed=0).abs()
    arrays = {
        "logp": logp.requires_grad_(),
        "entropy": draw(answers, TOKENS, seed=1).abs().requires_grad_(),
        "advantages": draw(answers, seed=2),
        "ref_logp": logp.detach() + draw(answers, TOKENS, seed=3, scale=0.3),
    }
    if given == "high entropy":
        arrays["high_entropy"] = draw(answers, TOKENS, seed=6) > 0
    if given != "nothing":
        arrays["old_logp"] = logp.detach() + draw(answers, TOKENS, seed=4, scale=0.3)
    if given == "old and sampling ratio":
        arrays["sampling_ratio"] = torch.where(mask, draw(answers, TOKENS, seed=5, scale=0.1).exp(), 1.0)
    theirs, logged = trl_grpo(arrays, mask, **options)
    ours_options = dict(options)
    if options["loss_type"] == "vespo":
        ours_options = {"loss_type": "vespo"} | {
            n: options[n] for n in ("beta", "entropy_coef") if n in options
        }
        if "vespo_k_pos" in options:
            ours_options |= {"vespo_pos": (1.0, 2.5), "vespo_neg": (2.0, 1.5)}
    arguments = {n: a for n, a in arrays.items() if n not in ("logp", "advantages")}
    found = losses.grpo(
        logp, mask, arrays["advantages"], **arguments, num_items=17, max_completion_length=13,
        **({"epsilon_high": 0.28} | ours_options),
    )  # fmt: skip
    inputs = [logp, arrays["entropy"]] if "entropy_coef" in options else [logp]
    # TRL holds some means in float32.
    same(found.loss, theirs, *inputs, tolerance=1e-7)
    assert abs(found.entropy.item() - logged["entropy"][0]) < 1e-6
    if options.get("beta"):
        assert abs(found.kl.item() - logged["kl"][0]) < 1e-6
    if "clip_ratio/low_mean" in logged and options.get("importance_sampling_level") != "sequence":
        assert abs(found.clipped_low.item() - logged["clip_ratio/low_mean"][0]) < 1e-6
        high = logged["clip_ratio/high_mean"][0]
        assert abs(found.clipped_high.item() - high) < 1e-6 or "delta" in options
    assert not found.loss.isnan()


@pytest.mark.parametrize("loss_type", losses.POLICY_LOSSES)
def test_grpo_is_differentiated_by_what_the_policy_computes_alone(loss_type: str) -> None:
    """On a head, gradients are those of one group of answers after another: nothing else may have one."""
    logp, entropy, old, ref = (-draw(2 * PAIRS, TOKENS, seed=i).abs() for i in range(4))
    arrays = {"logp": logp, "entropy": entropy, "old_logp": old, "ref_logp": ref}
    arrays |= {n: draw(2 * PAIRS, 1, seed=i).abs() for i, n in enumerate(("sampling_ratio", "weights"), 4)}
    arrays["advantages"] = draw(2 * PAIRS, seed=6)
    for array in arrays.values():
        array.requires_grad_()
    found = losses.grpo(
        mask=completions(), loss_type=loss_type, beta=0.1, entropy_coef=0.1, max_completion_length=9, **arrays
    )
    gradients = torch.autograd.grad(found.loss, list(arrays.values()), allow_unused=True)
    assert [n for n, g in zip(arrays, gradients, strict=True) if g is not None] == ["logp", "entropy"]


@pytest.mark.parametrize("loss_type", losses.POLICY_LOSSES)
def test_grpo_reads_nothing_outside_the_mask(loss_type: str) -> None:
    mask = completions()
    arrays = {
        n: -draw(2 * PAIRS, TOKENS, seed=i).abs() for i, n in enumerate(("logp", "old_logp", "ref_logp"))
    }
    arrays["entropy"] = draw(2 * PAIRS, TOKENS, seed=5).abs()
    advantages = draw(2 * PAIRS, seed=6)

    def results() -> tuple[torch.Tensor, ...]:
        logp = arrays["logp"].detach().requires_grad_()
        others = {n: a for n, a in arrays.items() if n != "logp"}
        found = losses.grpo(
            logp,
            mask,
            advantages,
            **others,
            loss_type=loss_type,
            beta=0.1,
            entropy_coef=0.1,
            max_completion_length=9,
        )
        return found.loss, torch.autograd.grad(found.loss, logp)[0]

    expected = results()
    for array in arrays.values():
        array[~mask] = float("nan")
    for a, b in zip(results(), expected, strict=True):
        torch.testing.assert_close(a, b)
    assert not expected[1][~mask].any()


def test_sft_is_cross_entropy() -> None:
    logits = draw(3, TOKENS, 11, seed=0).requires_grad_()
    labels = torch.randint(0, 11, (3, TOKENS), generator=torch.Generator().manual_seed(1))
    labels[0, :4] = labels[2, 5:] = -100
    mask, weights = labels != -100, draw(3, TOKENS, seed=2).abs()
    logp = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    same(losses.sft(logp, mask), plain, logits)
    logp, lse = (
        logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0],
        logits.logsumexp(-1),
    )
    found = losses.sft(logp, mask, weights=weights, lse=lse, z_loss=1e-2, num_items=torch.tensor(40))
    per_token = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    expected = per_token.view(3, -1) * weights + 1e-2 * logits.logsumexp(-1) ** 2
    same(found, expected[mask].sum() / 40, logits)
    assert losses.sft(logp, torch.zeros_like(mask)) == 0


@needs_trl
@pytest.mark.parametrize("loss_type", losses.SFT_LOSSES)
@pytest.mark.parametrize("num_items", [None, 12])
def test_sft_equals_trl(loss_type: str, num_items: int | None) -> None:
    from trl.trainer.sft_trainer import SFTTrainer

    logp, mask = -draw(3, TOKENS, seed=0).abs(), torch.arange(TOKENS).expand(3, -1) > 2
    logp.requires_grad_()
    outputs = types.SimpleNamespace(
        log_probs=logp * mask, label_mask=mask, entropy=torch.zeros_like(logp), is_top1=mask, aux_loss=None
    )
    accelerator = recorder()
    accelerator.parallelism_config = None
    stub = types.SimpleNamespace(
        accelerator=accelerator, model=types.SimpleNamespace(training=True), aux_loss_enabled=False,
        compute_loss_func=None, label_smoother=None,
        args=types.SimpleNamespace(loss_type=loss_type, average_tokens_across_devices=False),
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {"labels": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask)}
    theirs = SFTTrainer.compute_loss(stub, lambda **_: outputs, inputs, num_items_in_batch=num_items)
    same(losses.sft(logp, mask, loss_type=loss_type, num_items=num_items), theirs, logp)


@needs_trl
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_top_k_divergence_equals_trl(beta: float, tail: bool) -> None:
    from trl.experimental.server_distillation import server_distillation_trainer as theirs

    logits, teacher = draw(6, 11, seed=0).requires_grad_(), draw(6, 11, seed=1).log_softmax(-1)
    top = teacher.topk(3)
    q, p = (logits / 0.7).log_softmax(-1).gather(-1, top.indices), top.values
    support = torch.ones_like(p, dtype=torch.bool)
    if tail:
        q, _ = theirs._add_tail_bucket(q, support)
        p, support = theirs._add_tail_bucket(p, support)
    expected = theirs._jsd_divergence(q, p, beta, support).sum()
    found = losses.top_k_divergence(logits, top.indices, top.values, beta=beta, temperature=0.7, tail=tail)
    assert found.shape == (6,)
    same(found.sum(), expected, logits, tolerance=1e-9)


def test_top_k_divergence_of_all_words_is_the_whole() -> None:
    logits, teacher = draw(6, 11, seed=0), draw(6, 11, seed=1).log_softmax(-1)
    top = teacher.topk(11)
    expected = torch.nn.functional.kl_div(
        logits.log_softmax(-1), teacher, reduction="none", log_target=True
    ).sum(-1)
    for tail in (False, True):
        found = losses.top_k_divergence(logits, top.indices, top.values, tail=tail)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"top_k_divergence: ids have shape \(6, 11\), teacher_logp \(6, 3\)"
    ):
        losses.top_k_divergence(logits, top.indices, top.values[:, :3])


def test_cosine_distance() -> None:
    student, teacher = draw(5, 7, seed=0).requires_grad_(), draw(5, 7, seed=1)
    expected = 1 - torch.nn.functional.cosine_similarity(student, teacher, dim=-1)
    same(losses.cosine_distance(student, teacher).sum(), expected.sum(), student)
    zeros = torch.zeros(2, 7, requires_grad=True)
    value = losses.cosine_distance(zeros, teacher[:2])
    assert (value == 1).all()
    assert torch.isfinite(torch.autograd.grad(value.sum(), zeros)[0]).all()


@pytest.mark.parametrize("layout", ["hv", "vh"])
def test_map_logits_in_jax(layout: str) -> None:
    jax = pytest.importorskip("jax", reason="needs jax")
    from liger_jax import map_logits

    rng = np.random.default_rng(0)
    x, kernel = (
        rng.standard_normal((2, 5, 4)).astype(np.float32),
        rng.standard_normal((4, 9)).astype(np.float32),
    )
    bias, teacher = (
        rng.standard_normal(9).astype(np.float32),
        rng.standard_normal((2, 5, 9)).astype(np.float32),
    )
    ids = np.argsort(teacher, -1)[..., :3]
    teacher_logp = np.take_along_axis(np.asarray(jax.nn.log_softmax(teacher)), ids, -1)

    def function(logits: Any, ids: Any, logp: Any) -> Any:
        return losses.top_k_divergence(logits, ids, logp, beta=0.3)

    def chunked(x: Any, kernel: Any, bias: Any) -> Any:
        kernel = kernel if layout == "hv" else kernel.T
        found = map_logits(
            function, x, kernel, ids, teacher_logp, bias=bias, kernel_layout=layout, chunk_bytes=4 * 9 * 3
        )
        assert found.shape == (2, 5)
        return found.sum()

    def whole(x: Any, kernel: Any, bias: Any) -> Any:
        return function(x @ kernel + bias, ids, teacher_logp).sum()

    value, gradients = jax.jit(jax.value_and_grad(chunked, (0, 1, 2)))(x, kernel, bias)
    expected, others = jax.value_and_grad(whole, (0, 1, 2))(x, kernel, bias)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for a, b in zip(gradients, others, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="map_logits: kernel_layout is 'hh'"):
        map_logits(function, x, kernel, kernel_layout="hh")
    with pytest.raises(
        ValueError, match=r"map_logits: arrays\[0\] has shape \(2, 4, 3\); its leading axes must be \(2, 5\)"
    ):
        map_logits(function, x, kernel, ids[:, :4])


def preference_losses() -> list[tuple[str, Callable[..., Any]]]:
    def variant(name: str) -> Callable[..., Any]:
        return lambda w, r, lengths: losses.dpo(
            w, r, -0.1 * lengths[0], -0.2 * lengths[1],
            loss_type=name, label_smoothing=SMOOTHING.get(name, 0.0), lengths=lengths,
        ).loss  # fmt: skip

    def of_cpo(name: str) -> Callable[..., Any]:
        return lambda w, r, lengths: losses.cpo(w, r, loss_type=name).loss

    return [
        *((name, variant(name)) for name in losses.DPO_LOSSES),
        *((f"cpo-{name}", of_cpo(name)) for name in losses.CPO_LOSSES),
        ("alpha_po", lambda w, r, lengths: losses.cpo(w, r, reward_alpha=0.3).loss),
        *(
            (name, lambda w, r, lengths, name=name: losses.dpo(w, r, f_divergence=name, f_alpha=0.5).loss)
            for name in losses.F_DIVERGENCES
        ),
        ("orpo", lambda w, r, lengths: losses.orpo(w, r).loss),
    ]


@pytest.mark.parametrize(("name", "loss"), preference_losses(), ids=[n for n, _ in preference_losses()])
def test_torch_jax_and_numpy_agree(name: str, loss: Callable[..., Any]) -> None:
    jax = pytest.importorskip("jax", reason="needs jax")
    rng = np.random.default_rng(0)
    chosen, rejected = (-np.abs(rng.standard_normal(PAIRS)).astype(np.float32) for _ in range(2))
    lengths = (np.arange(1, PAIRS + 1, dtype=np.float32), np.full(PAIRS, 3, np.float32))
    t = [torch.tensor(a, requires_grad=True) for a in (chosen, rejected)]
    ours = loss(*t, tuple(map(torch.tensor, lengths)))
    gradients = torch.autograd.grad(ours.sum(), t, allow_unused=True)
    values, pull_back = jax.vjp(
        lambda w, r: loss(w, r, tuple(map(jax.numpy.asarray, lengths))), chosen, rejected
    )
    np.testing.assert_allclose(ours.detach().numpy(), loss(chosen, rejected, lengths), rtol=2e-6)
    np.testing.assert_allclose(ours.detach().numpy(), values, rtol=2e-6)
    for a, b in zip(gradients, pull_back(jax.numpy.ones_like(values)), strict=True):
        np.testing.assert_allclose(np.zeros_like(b) if a is None else a.numpy(), b, rtol=5e-6, atol=1e-7)


@pytest.mark.parametrize("loss_type", [*losses.POLICY_LOSSES, "kto", "ld", "sft", "wpo"])
def test_torch_and_jax_agree_on_tokens(loss_type: str) -> None:
    jax = pytest.importorskip("jax", reason="needs jax")
    rng = np.random.default_rng(0)
    logp, old, ref, lse = (-np.abs(rng.standard_normal((4, TOKENS))).astype(np.float32) for _ in range(4))
    advantages, mask = rng.standard_normal(4).astype(np.float32), np.arange(TOKENS) >= np.arange(4)[:, None]

    def loss(logp: Any, old: Any, ref: Any, lse: Any, advantages: Any, mask: Any) -> Any:
        if loss_type == "sft":
            return losses.sft(logp, mask, lse=lse, z_loss=0.1)
        if loss_type == "ld":
            return losses.dpo(*losses.desensitized_pair_logps(logp, mask, ld_alpha=0.3)).loss.sum()
        if loss_type == "wpo":
            pairs = losses.dpo(*losses.pair_logps(logp, mask, average=False)).loss
            return (pairs * losses.wpo_weights(logp, mask, lse)).sum()
        if loss_type == "kto":
            sums = losses.sequence_logp(logp, mask), losses.sequence_logp(ref, mask)
            return losses.kto(sums[0], advantages > 0, sums[1], kl=losses.kl_estimate(*sums)).loss.sum()
        return losses.grpo(
            logp, mask, advantages, old_logp=old, ref_logp=ref, entropy=-lse, loss_type=loss_type, beta=0.1,
            entropy_coef=0.1, max_completion_length=9,
        ).loss  # fmt: skip

    arrays = (logp, old, ref, lse, advantages, mask)
    tensors = [torch.tensor(a) for a in arrays]
    tensors[0].requires_grad_()
    ours = loss(*tensors)
    value, gradient = jax.jit(jax.value_and_grad(loss))(*arrays)
    np.testing.assert_allclose(ours.item(), value, rtol=2e-6)
    np.testing.assert_allclose(
        torch.autograd.grad(ours, tensors[0])[0].numpy(), gradient, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("name", [n for n, _ in preference_losses()])
@pytest.mark.parametrize("size", [1e-7, 1e3, 1e4])
def test_extreme_log_probabilities(name: str, size: float) -> None:
    """Finite losses and gradients where a logistic function underflows, and where a log-probability is nearly 0."""
    loss = dict(preference_losses())[name]
    for signs in ((-1, -1), (-1, -3), (-3, -1)):
        w, r = (torch.full((2,), s * size, requires_grad=True) for s in signs)
        value = loss(w, r, (torch.ones(2), torch.ones(2)))
        gradients = torch.autograd.grad(value.sum(), (w, r), allow_unused=True)
        for tensor in (value, *gradients):
            assert tensor is None or torch.isfinite(tensor).all()


def extreme_grpo() -> dict[str, dict[str, Any]]:
    """Options of `grpo` whose loss is bounded, or has a term of 0, where its ratio is e^100 or more."""
    return {
        **{name: {"loss_type": name, "advantages": 1.0} for name in losses.POLICY_LOSSES},
        "sequence": {"importance_sampling_level": "sequence", "advantages": 1.0},
        "no advantage": {"advantages": 0.0},
        "both sides": {"advantages": -1.0, "delta": 4.0},
        "negative": {"advantages": -1.0},
        "sapo-negative": {"loss_type": "sapo", "advantages": -1.0},
        "weights": {"advantages": -1.0, "weights": 0.0},
        "not sampled": {"advantages": -1.0, "sampling_ratio": 0.0},
        "vespo-not sampled": {"loss_type": "vespo", "advantages": -1.0, "sampling_ratio": 0.0},
        "low entropy": {"advantages": -1.0, "high_entropy": False},
        "kl": {"advantages": 1.0, "beta": 0.1},
        "kl times ratio": {"advantages": 1.0, "beta": 0.1, "use_bias_correction_kl": True},
    }


@pytest.mark.parametrize("name", extreme_grpo())
def test_extreme_ratios(name: str) -> None:
    """A token that the sampler thought impossible, or that the policy does: finite, and nothing on the way is NaN."""
    jax = pytest.importorskip("jax", reason="needs jax")
    options = {"max_completion_length": 3, **extreme_grpo()[name]}
    logp = np.array([[-1, -2, -1], [-1, -100, -1e4], [0, -1, -3]], np.float32)
    old = np.array([[-120, -1e4, -np.inf], [-1, -1, -1], [-89, -2, -3]], np.float32)
    mask = np.array([[True, True, True], [True, True, True], [True, True, False]])
    arrays = {
        n: np.full((3, 1), options.pop(n), np.float32)
        for n in ("advantages", "weights", "sampling_ratio")
        if n in options
    }
    if "high_entropy" in options:
        arrays["high_entropy"] = np.full((3, 3), options.pop("high_entropy"))

    def loss(logp: Any, old: Any, ref: Any, mask: Any, arrays: Any) -> Any:
        found = losses.grpo(logp, mask, old_logp=old, ref_logp=ref, **arrays, **options)
        return found.loss

    leaf = torch.tensor(logp, requires_grad=True)
    with torch.autograd.set_detect_anomaly(True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Anomaly Detection")
        value = loss(
            leaf,
            *map(torch.tensor, (old, -np.ones_like(old), mask)),
            {n: torch.tensor(a) for n, a in arrays.items()},
        )
        (gradient,) = torch.autograd.grad(value, leaf)
    assert value.isfinite() and gradient.isfinite().all()
    with jax.debug_nans(True):
        jax_value, jax_gradient = jax.value_and_grad(loss)(logp, old, -np.ones_like(old), mask, arrays)
    np.testing.assert_allclose(value.item(), jax_value, rtol=2e-6)
    np.testing.assert_allclose(gradient.numpy(), jax_gradient, rtol=1e-5, atol=1e-7)
    if name in ("grpo", "no advantage", "both sides", "weights", "not sampled", "low entropy"):
        assert not gradient[0].any()  # clipped, or without effect
    if name == "negative":
        assert (gradient[0, :2] > 1e30).all()


def test_means_and_masks() -> None:
    logp, mask = draw(4, 6, seed=0), torch.ones(4, 6, dtype=torch.bool)
    mask[:, 4:] = False
    mask[3] = False
    logp[:, 5] = float("nan")
    expected = logp[:, :4].mean(1)
    expected[3] = 0
    torch.testing.assert_close(losses.sequence_logp(logp, mask, average=True), expected)
    torch.testing.assert_close(losses.negative_log_likelihood(logp, mask), -logp[:3, :4].mean())
    assert losses.token_mean(logp, torch.zeros_like(mask)) == 0


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
    ],
)  # fmt: skip
def test_no_array_spreads_over_others(call: Callable[..., Any], message: str) -> None:
    """Each of these would be broadcast, and the loss be another."""
    with pytest.raises(ValueError, match=message):
        call(-torch.arange(4.0))


def test_good_is_bool() -> None:
    """Labels of 0 to 1, or of 1 and -1, would all be good."""
    with pytest.raises(TypeError, match=r"kto: good has dtype torch\.float32; it must be bool"):
        losses.kto(torch.zeros(2), torch.tensor([1.0, -1.0]))


def test_advantages_do_not_decide_the_dtype() -> None:
    logp, mask, advantages = -torch.rand(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.tensor([1, -2])
    expected = losses.grpo(logp, mask, advantages.float()).loss
    for other in (advantages, advantages.double(), advantages.bfloat16(), advantages[:, None].expand(2, 3)):
        found = losses.grpo(logp, mask, other).loss
        assert found.dtype == torch.float32
        assert found == expected


@pytest.mark.parametrize(("chosen", "rejected"), [(0.0, -1.0), (-1.0, 0.0), (0.0, 0.0)])
def test_orpo_of_certain_answers(chosen: float, rejected: float) -> None:
    """log pi = 0 in float32, as of an answer without tokens: finite, and its odds are no source of a gradient."""
    inputs = [torch.tensor([x], requires_grad=True) for x in (chosen, rejected)]
    value = losses.orpo(*inputs).loss
    for tensor in (value, *torch.autograd.grad(value, inputs)):
        assert torch.isfinite(tensor).all()

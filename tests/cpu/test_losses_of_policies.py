"""GRPO and its kin: TRL's own code, what is read and differentiated, extreme ratios."""

from __future__ import annotations

import types
import warnings
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from loss_arrays import PAIRS, TOKENS, completions, draw, needs_trl, recorder, same

from liger import losses


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


@pytest.mark.parametrize(
    ("loss_type", "level"),
    [
        *((name, "token") for name in losses.POLICY_LOSSES),
        *((name, "sequence") for name in losses.POLICY_LOSSES if name != "vespo"),
    ],
)
def test_grpo_reads_nothing_outside_the_mask(loss_type: str, level: str) -> None:
    mask = completions()
    arrays = {
        n: -draw(2 * PAIRS, TOKENS, seed=i).abs() for i, n in enumerate(("logp", "old_logp", "ref_logp"))
    }
    for i, name in enumerate(("entropy", "sampling_ratio", "weights"), 5):
        arrays[name] = draw(2 * PAIRS, TOKENS, seed=i).abs()
    arrays["advantages"] = draw(2 * PAIRS, TOKENS, seed=9)

    def results() -> tuple[torch.Tensor, ...]:
        logp = arrays["logp"].detach().requires_grad_()
        others = {n: a for n, a in arrays.items() if n != "logp"}
        found = losses.grpo(
            logp,
            mask,
            **others,
            loss_type=loss_type,
            importance_sampling_level=level,
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


def test_advantages_do_not_decide_the_dtype() -> None:
    logp, mask, advantages = -torch.rand(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.tensor([1, -2])
    expected = losses.grpo(logp, mask, advantages.float()).loss
    for other in (advantages, advantages.double(), advantages.bfloat16(), advantages[:, None].expand(2, 3)):
        found = losses.grpo(logp, mask, other).loss
        assert found.dtype == torch.float32
        assert found == expected

"""The algebra of post-training losses: TRL's own code, both frameworks, extreme numbers, messages."""

from __future__ import annotations

import importlib.util
import inspect
import types
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
    } | options
    stub = types.SimpleNamespace(
        **settings,
        accelerator=types.SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        use_weighting=False,
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
        log_probs=logp * mask, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
    )

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


@pytest.mark.parametrize(
    "name", [n for n, _ in preference_losses() if n not in ("discopop",)]
)  # exp(-h), as in the paper
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

"""Losses on a head: the same as of logits in float64, and as liger-kernel's."""

from __future__ import annotations

import importlib.util
from typing import Any

import checkout  # noqa: F401
import grpo_on_ranks
import pytest
import torch
import torch.nn.functional as F
from ranks import on_two_ranks

from benchmarks.offline import chunked_losses
from liger import losses
from liger_torch import chunked_loss
from liger_torch.functional import fused_linear_logprobs, liger_jsd, map_logits

needs_liger_kernel = pytest.mark.skipif(
    importlib.util.find_spec("liger_kernel") is None, reason="needs liger-kernel (the extra `peers`)"
)

PAIRS, TOKENS, HIDDEN, REF_HIDDEN, VOCAB = 3, 7, 8, 6, 23


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()


def problem(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    target = torch.randint(0, VOCAB, (2 * PAIRS, TOKENS), generator=torch.Generator().manual_seed(9))
    target[0, :3], target[1, -2:], target[4, 0] = -100, -100, -100
    return {
        "lin_weight": draw(VOCAB, HIDDEN, seed=0, dtype=dtype),
        "_input": draw(2 * PAIRS, TOKENS, HIDDEN, seed=1, dtype=dtype),
        "target": target,
        "bias": draw(VOCAB, seed=2, dtype=dtype),
        "ref_input": draw(2 * PAIRS, TOKENS, REF_HIDDEN, seed=3, dtype=dtype).detach(),
        "ref_weight": draw(VOCAB, REF_HIDDEN, seed=4, dtype=dtype).detach(),
        "ref_bias": draw(VOCAB, seed=5, dtype=dtype).detach(),
    }


def logp_of_logits(p: dict[str, torch.Tensor], ref: bool, ids: torch.Tensor | None = None) -> torch.Tensor:
    """From all the logits, in float64."""
    names = ("ref_input", "ref_weight", "ref_bias") if ref else ("_input", "lin_weight", "bias")
    x, w, b = (p[n].double() for n in names)
    ids = p["target"] if ids is None else ids
    x = x[: ids.shape[0]]
    logp = F.linear(x, w, b).log_softmax(-1).gather(-1, ids.clamp(min=0)[..., None])[..., 0]
    return torch.where(ids == -100, 0.0, logp)


def halves(logp: torch.Tensor, p: dict[str, torch.Tensor], average: bool) -> tuple[torch.Tensor, ...]:
    total = logp.sum(-1)
    return (total / (p["target"] != -100).sum(-1) if average else total).chunk(2)


def same(ours: Any, theirs: torch.Tensor, inputs: list[torch.Tensor], tolerance: float = 1e-10) -> None:
    assert abs(ours.item() - theirs.item()) <= tolerance * abs(theirs.item())
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        assert (a.double() - b.double()).norm() <= tolerance * b.double().norm()
        assert b.any()


def trained(p: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [p["_input"], p["lin_weight"], p["bias"]]


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("loss_type", [n for n in losses.DPO_LOSSES if n != "sft"])
def test_dpo_is_that_of_the_logits(loss_type: str, average: bool) -> None:
    p = problem()
    smoothing = 0.1 if loss_type in ("exo_pair", "robust", "sigmoid") else 0.0
    loss = chunked_loss.LigerFusedLinearDPOLoss(
        beta=0.3, alpha=0.5, compute_nll_loss=True, average_log_prob=average, loss_type=loss_type,
        label_smoothing=smoothing,
    )  # fmt: skip
    found, details = loss(**p)
    policy = halves(logp_of_logits(p, False), p, average)
    reference = halves(logp_of_logits(p, True), p, average)
    lengths = (p["target"] != -100).sum(-1).double().chunk(2)
    pairs = losses.dpo(
        *policy, *reference, loss_type=loss_type, beta=0.3, label_smoothing=smoothing,
        lengths=None if average else lengths,
    )  # fmt: skip
    chosen = p["target"][:PAIRS] != -100
    nll = -logp_of_logits(p, False)[:PAIRS][chosen].mean()
    same(found, pairs.loss.mean() + 0.5 * nll, trained(p))
    logits = F.linear(p["_input"], p["lin_weight"], p["bias"]).detach()
    expected = [*policy, logits[:PAIRS].mean(), logits[PAIRS:].mean(), nll, *pairs[1:]]
    for a, b in zip(details, expected, strict=True):
        torch.testing.assert_close(a.double(), b.detach(), rtol=1e-5, atol=1e-6)
        assert not a.requires_grad


def test_reference_given_in_three_ways() -> None:
    p = problem()
    loss = chunked_loss.LigerFusedLinearDPOLoss()
    expected, _ = loss(**p)
    own = {n: p[n] for n in ("lin_weight", "_input", "target", "bias")}
    given = logp_of_logits(p, True).sum(-1)
    same(loss(**own, ref_logps=given)[0], expected, trained(p))
    without = chunked_loss.LigerFusedLinearDPOLoss(use_ref_model=False)(**own)[0]
    chosen, rejected = halves(logp_of_logits(p, False), p, False)
    same(without, -F.logsigmoid(0.1 * (chosen - rejected)).mean(), trained(p))
    with pytest.raises(
        ValueError, match="dpo: use_ref_model is True and neither ref_input nor ref_logps is given; with"
    ):
        loss(**own)
    with pytest.raises(ValueError, match="dpo: use_ref_model is True and ref_input and ref_logps is given"):
        loss(**p, ref_logps=given)
    with pytest.raises(ValueError, match="dpo: ref_input is given without ref_weight"):
        loss(**own, ref_input=p["ref_input"])


def test_shapes_and_labels_that_would_pass_for_others() -> None:
    p = problem()
    own = {n: p[n] for n in ("lin_weight", "_input", "target")}
    for shape in ((2,), (2 * PAIRS, 1), (2 * PAIRS, TOKENS)):
        with pytest.raises(ValueError, match=r"dpo: ref_logps has shape \(.*\); expected \(6,\)"):
            chunked_loss.LigerFusedLinearDPOLoss()(**own, ref_logps=torch.zeros(shape))
    labels = torch.tensor([1, -1, 1, 1, -1, -1])
    with pytest.raises(TypeError, match=r"kto: preference_labels has dtype torch\.int64; it must be bool"):
        chunked_loss.LigerFusedLinearKTOLoss()(**own, preference_labels=labels)


def test_cpo_and_simpo_are_those_of_the_logits() -> None:
    p = problem()
    own = {n: p[n] for n in ("lin_weight", "_input", "target", "bias")}
    cpo = chunked_loss.LigerFusedLinearCPOLoss(beta=0.4, alpha=0.6, label_smoothing=0.1)
    logp, chosen = logp_of_logits(p, False), p["target"][:PAIRS] != -100
    expected = losses.cpo(*halves(logp, p, False), beta=0.4, label_smoothing=0.1).loss.mean()
    same(cpo(**own)[0], expected - 0.6 * logp[:PAIRS][chosen].mean(), trained(p))
    hinge = chunked_loss.LigerFusedLinearCPOLoss(
        loss_type="hinge", average_log_prob=True, compute_nll_loss=False
    )
    means = halves(logp_of_logits(p, False), p, True)
    same(hinge(**own)[0], losses.cpo(*means, loss_type="hinge").loss.mean(), trained(p))
    simpo = chunked_loss.LigerFusedLinearSimPOLoss(gamma=0.3, compute_nll_loss=False)
    means = halves(logp_of_logits(p, False), p, True)
    same(simpo(**own)[0], -F.logsigmoid(0.1 * (means[0] - means[1]) - 0.3).mean(), trained(p))


@pytest.mark.parametrize("prompts", [False, True])
def test_orpo_is_that_of_the_logits(prompts: bool) -> None:
    """The likelihood is that of the answers, or of prompts and answers."""
    p = problem()
    own = {n: p[n] for n in ("lin_weight", "_input", "target", "bias")}
    whole = torch.where(p["target"] == -100, 5, p["target"])
    means = halves(logp_of_logits(p, False), p, True)
    odds = [m - torch.log1p(-m.exp()) for m in means]
    ids = (whole if prompts else p["target"])[:PAIRS]
    nll = -logp_of_logits(p, False, ids)[ids != -100].mean()
    found, _ = chunked_loss.LigerFusedLinearORPOLoss(beta=0.2)(**own, nll_target=whole if prompts else None)
    same(found, nll - 0.2 * F.logsigmoid(odds[0] - odds[1]).mean(), trained(p))


UPSTREAM = {
    "DPO": [
        {"loss_type": name, "label_smoothing": {"exo_pair": 1e-3, "robust": 0.1}.get(name, 0.0)}
        for name in (
            "sigmoid", "hinge", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "discopop"
        )
    ] + [{"average_log_prob": True, "compute_nll_loss": True, "alpha": 0.3}, {"use_ref_model": False}],
    "CPO": [{}, {"label_smoothing": 0.1, "alpha": 0.2}, {"average_log_prob": True, "compute_nll_loss": False}],
    "SimPO": [{}, {"gamma": 0.2, "beta": 2.0, "compute_nll_loss": False, "label_smoothing": 0.2}],
    "ORPO": [{}, {"beta": 0.4, "compute_nll_loss": False}, {"nll_target": True}],
}  # fmt: skip


@needs_liger_kernel
@pytest.mark.parametrize(
    ("name", "options"), [(n, o) for n, cases in UPSTREAM.items() for o in cases], ids=lambda v: str(v)[:50]
)
def test_the_same_as_liger_kernel(name: str, options: dict[str, Any]) -> None:
    import liger_kernel.chunked_loss as theirs

    p, options = problem(torch.float32), dict(options)
    arguments = [p["lin_weight"], p["_input"], p["target"], p["bias"]]
    if name == "DPO" and options.get("use_ref_model", True):
        arguments += [p["ref_input"], p["ref_weight"], p["ref_bias"]]
    if options.pop("nll_target", False):
        arguments.append(torch.where(p["target"] == -100, 5, p["target"]))
    kind = f"LigerFusedLinear{name}Loss"
    expected, expected_details = getattr(theirs, kind)(compiled=False, **options)(*arguments)
    found, details = getattr(chunked_loss, kind)(compiled=False, **options)(*arguments)
    same(found, expected, trained(p), tolerance=2e-6)
    for a, b in zip(details, expected_details, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-6)


@needs_liger_kernel
@pytest.mark.parametrize(
    "options",
    [{}, {"average_log_prob": True}, {"use_ref_model": False, "average_log_prob": True}, {"kl": False}],
    ids=str,
)
def test_kto_is_liger_kernels(options: dict[str, Any]) -> None:
    import liger_kernel.chunked_loss as theirs

    p, options = problem(torch.float32), {"use_ref_model": True, "beta": 0.3} | options
    good = torch.tensor([True, False, False, True, True, False])
    kl = torch.tensor(0.4) if options.pop("kl", True) else None
    reference = [p["ref_input"], p["ref_weight"], p["ref_bias"]] if options["use_ref_model"] else [None] * 3
    arguments = (p["_input"], p["lin_weight"], p["target"], p["bias"], good, *reference, kl)
    expected, expected_details = theirs.LigerFusedLinearKTOLoss(compiled=False, **options)(*arguments)
    found, details = chunked_loss.LigerFusedLinearKTOLoss(compiled=False, **options)(*arguments)
    same(found, expected, trained(p), tolerance=2e-6)
    assert len(details) == len(expected_details)
    for a, b in zip(details, expected_details, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-4)


OF_GRPO = [
    *({"loss_type": n} for n in losses.POLICY_LOSSES if n != "luspo"),
    *({"loss_type": n, "importance_sampling_level": "sequence"} for n in ("grpo", "dapo", "bnpo", "dr_grpo")),
    # Of tokens liger-kernel's counts padding.
    {"loss_type": "luspo", "importance_sampling_level": "sequence", "beta": 0.0},
    {"delta": 1.2, "temperature": 0.7},
    {"beta": 0.0},
    {"use_bias_correction_kl": True},
    {"use_ref_model": False},
]


@needs_liger_kernel
@pytest.mark.parametrize("reference", ["hidden states", "log-probabilities"])
@pytest.mark.parametrize("options", OF_GRPO, ids=lambda o: "-".join(map(str, o.values())))
def test_grpo_is_liger_kernels(options: dict[str, Any], reference: str) -> None:
    import liger_kernel.chunked_loss as theirs

    p, options = problem(torch.float32), {"max_completion_length": 11, "epsilon_high": 0.3} | options
    ids = p["target"].clamp(min=0)
    mask, advantages = (p["target"] != -100).long(), draw(2 * PAIRS, seed=11, dtype=torch.float32).detach()
    own = logp_of_logits(p, False).detach().float()
    arguments: dict[str, Any] = {
        "old_per_token_logps": own + 0.3 * draw(2 * PAIRS, TOKENS, seed=12, dtype=torch.float32).detach(),
        "vllm_is_ratio": 1 + 0.1 * draw(2 * PAIRS, 1, seed=13, dtype=torch.float32).detach(),
        "num_items_in_batch": 50,
    }
    if reference == "hidden states" and options.get("use_ref_model", True):
        arguments |= {n: p[n] for n in ("ref_input", "ref_weight", "ref_bias")}
    elif options.get("use_ref_model", True):
        arguments["ref_per_token_logps"] = (
            own + 0.2 * draw(2 * PAIRS, TOKENS, seed=14, dtype=torch.float32).detach()
        )
    positional = (p["_input"], p["lin_weight"], ids, mask, advantages, p["bias"])
    expected, metrics = theirs.LigerFusedLinearGRPOLoss(compiled=False, **options)(*positional, **arguments)
    found, ours = chunked_loss.LigerFusedLinearGRPOLoss(compiled=False, **options)(*positional, **arguments)
    same(found, expected, trained(p), tolerance=1e-5)
    for a, b in zip(ours, metrics, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-6)


def test_grpo_with_an_entropy_bonus_and_weights() -> None:
    p = problem()
    mask, advantages = p["target"] != -100, torch.linspace(-1, 1, 2 * PAIRS, dtype=torch.float64)
    weights = draw(2 * PAIRS, 1, seed=3).detach().abs()
    found, _ = chunked_loss.LigerFusedLinearGRPOLoss(beta=0.0, entropy_coef=0.2, temperature=0.8)(
        p["_input"], p["lin_weight"], p["target"], mask, advantages, p["bias"], weights=weights
    )
    logits = F.linear(p["_input"], p["lin_weight"], p["bias"]) / 0.8
    logp = logits.log_softmax(-1).gather(-1, p["target"].clamp(min=0)[..., None])[..., 0]
    ratio = (logp - logp.detach()).exp()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    expected = -(ratio * advantages[:, None] * weights + 0.2 * entropy)[mask].sum() / mask.sum()
    same(found, expected, trained(p))


def test_the_probabilities_of_wpo_come_from_two_temperatures() -> None:
    p = problem()
    arguments = (p["_input"], p["lin_weight"], p["target"], p["bias"])
    ours, half = (fused_linear_logprobs(*arguments, temperature=t) for t in (0.7, 0.35))
    logits = F.linear(p["_input"], p["lin_weight"], p["bias"]) / 0.7
    expected = logits.softmax(-1).square().sum(-1).log()
    mask = p["target"] != -100
    torch.testing.assert_close((half.lse - 2 * ours.lse)[mask], expected[mask].to(ours.lse.dtype))


def test_grpo_averaged_over_processes_is_that_of_all_answers() -> None:
    whole, parts = grpo_on_ranks.step(slice(None)), on_two_ranks(grpo_on_ranks.on_rank)
    for name, (loss, gradient) in whole.items():
        losses_of_ranks, gradients = zip(*(part[name] for part in parts), strict=True)
        torch.testing.assert_close(sum(losses_of_ranks) / 2, loss)
        torch.testing.assert_close(sum(gradients) / 2, gradient)


def distillation(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Arguments of the losses of distillation: students, teachers, labels, biases."""
    p = problem(dtype)
    flat = (t.detach().flatten(0, 1) for t in (p["_input"], p["ref_input"]))
    x, teacher = next(flat).requires_grad_(), next(flat)
    return x, p["lin_weight"], teacher, p["ref_weight"], p["target"].flatten(), p["bias"], p["ref_bias"]


@needs_liger_kernel
@pytest.mark.parametrize("name", ["JSD", "CosineSimilarity"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 0.0},
        {"beta": 1.0, "temperature": 2.0},
        {"beta": 0.2, "weight_hard_loss": 0.0, "weight_soft_loss": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("parts", [False, True])
def test_distillation_is_liger_kernels(name: str, options: dict[str, Any], parts: bool) -> None:
    if name == "CosineSimilarity" and options.get("beta") == 0.0:
        options = {"beta": 0.7}
    from liger_kernel.chunked_loss import cosine_similarity_loss, jsd_loss

    module = {"JSD": jsd_loss, "CosineSimilarity": cosine_similarity_loss}[name]
    arguments, kind = distillation(torch.float32), f"LigerFusedLinear{name}Loss"
    expected = getattr(module, kind)(compiled=False, return_soft_hard_loss=parts, **options)(*arguments)
    found = getattr(chunked_loss, kind)(compiled=False, return_soft_hard_loss=parts, **options)(*arguments)
    if parts:
        for a, b in zip(found[1:], expected[1:], strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-6)
        found, expected = found[0], expected[0]
    same(found, expected, [arguments[0], arguments[1], arguments[5]], tolerance=2e-6)


@pytest.mark.parametrize("chunk_bytes", [1, 4 * VOCAB * 5, None])
def test_map_logits(chunk_bytes: int | None) -> None:
    """JSD against a teacher's logits, top-k divergence and cosine distance in chunks: as of all logits at once."""
    x, weight, _, _, _, bias, _ = distillation()
    teacher = draw(x.shape[0], VOCAB, seed=20)
    factor = draw(x.shape[0], seed=21)
    top = teacher.detach().log_softmax(-1).topk(4)

    def jsd(logits: torch.Tensor, teacher: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return factor * liger_jsd(logits, teacher, beta=0.3, from_logits=True, reduction="none")

    def top_k(logits: torch.Tensor, ids: torch.Tensor, logp: torch.Tensor) -> torch.Tensor:
        return losses.top_k_divergence(logits, ids, logp, beta=0.2)

    for function, arrays in (
        (jsd, (teacher, factor)),
        (top_k, (top.indices, top.values)),
        (losses.cosine_distance, (teacher.detach(),)),
    ):
        inputs = [x, weight, bias, *(a for a in arrays if a.requires_grad)]
        found = map_logits(function, x, weight, *arrays, bias=bias, chunk_bytes=chunk_bytes)
        assert found.shape == x.shape[:1]
        same(found.sum(), function(F.linear(x, weight, bias), *arrays).sum(), inputs)
    with pytest.raises(
        ValueError, match=r"map_logits: arrays\[0\] has shape \(41, 23\); its leading axes must be \(42,\)"
    ):
        map_logits(losses.cosine_distance, x, weight, teacher[:-1])
    with pytest.raises(
        RuntimeError, match=r"map_logits: create_graph=True.*F\.linear\(input, weight, bias\)"
    ):
        torch.autograd.grad(found.sum(), x, create_graph=True)
    assert map_logits(losses.cosine_distance, x[:0], weight, teacher[:0]).shape == (0,)


def test_map_logits_backward_has_the_autocast_of_the_forward() -> None:
    """A loss is computed under autocast, its `backward()` called outside; or the other way round."""
    x, weight, _, _, _, bias, _ = distillation(torch.float32)
    head, teacher = draw(VOCAB, REF_HIDDEN, seed=4, dtype=torch.float32), draw(x.shape[0], REF_HIDDEN, seed=3)
    hidden = {torch.bfloat16: teacher.detach().bfloat16(), torch.float32: teacher.detach().float()}

    def loss(logits: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return losses.cosine_distance(logits, F.linear(hidden, head.detach()))

    for dtype, teacher in hidden.items():
        gradients = []
        for inside in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                found = map_logits(loss, x, weight, teacher, bias=bias).sum()
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                gradients.append(torch.autograd.grad(found, (x, weight, bias)))
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
            assert a.any()


def test_cosine_of_other_vocabularies() -> None:
    x, weight, teacher, head, labels, *_ = distillation()
    with pytest.raises(
        ValueError, match="cosine: teacher_weight has a vocabulary of 22, student_weight one of 23"
    ):
        chunked_loss.LigerFusedLinearCosineLoss()(x, weight, teacher, head[:-1], labels)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DPO", {"loss_type": "ipo", "compute_nll_loss": True}),
        ("GRPO", {"loss_type": "cispo", "beta": 0.0, "entropy_coef": 0.1}),
    ],
)
def test_one_graph_for_all_lengths(name: str, options: dict[str, Any]) -> None:
    """torch.compile of a whole loss: the same numbers, no break, and no second compilation."""
    torch._dynamo.reset()
    loss = getattr(chunked_loss, f"LigerFusedLinear{name}Loss")(**options)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")

    def check(tokens: int) -> None:
        p = problem(torch.float32)
        p = {
            n: a[:, :tokens].contiguous() if a.ndim > 1 and a.shape[1] == TOKENS else a for n, a in p.items()
        }
        p = {n: a.detach().requires_grad_(n in ("lin_weight", "_input")) for n, a in p.items()}
        if name == "GRPO":
            arguments = {
                "selected_token_ids": p["target"].clamp(min=0),
                "attention_mask": p["target"] != -100,
            }
            arguments |= {n: p[n] for n in ("_input", "lin_weight")} | {
                "advantages": torch.linspace(-1, 1, 6)
            }
        else:
            arguments = {n: a for n, a in p.items() if name == "DPO" or "ref" not in n}
        same(compiled(**arguments)[0], loss(**arguments)[0], [p["_input"], p["lin_weight"]], tolerance=1e-5)

    check(5)
    with torch.compiler.set_stance("fail_on_recompile"):
        check(6)
        check(TOKENS)


def test_what_there_is_to_log_is_float32_under_autocast() -> None:
    p = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, details = chunked_loss.LigerFusedLinearDPOLoss()(**p)
    assert {t.dtype for t in (found, *details)} == {torch.float32}


@needs_liger_kernel
@pytest.mark.parametrize("name", ["dpo", "cpo", "simpo", "orpo", "kto", "grpo"])
def test_functional_forms_take_liger_kernels_arguments(name: str) -> None:
    import inspect

    import liger_kernel.chunked_loss as theirs

    kind = {"simpo": "SimPO"}.get(name, name.upper())
    module = getattr(theirs, f"LigerFusedLinear{kind}Loss")
    ours = getattr(chunked_loss, f"LigerFusedLinear{kind}Loss")
    for method in ("__init__", "forward"):
        expected = inspect.signature(getattr(module, method)).parameters
        found = inspect.signature(getattr(ours, method)).parameters
        assert [n for n in found if n in expected] == list(expected)
        assert {n: v.default for n, v in expected.items()} == {n: found[n].default for n in expected}
    import liger_kernel.chunked_loss.functional as functions

    function = getattr(functions, f"liger_fused_linear_{name}").__self__
    expected = list(inspect.signature(function.forward).parameters)[1:]  # without ctx
    found = list(inspect.signature(getattr(chunked_loss, f"liger_fused_linear_{name}")).parameters)
    assert found[1 : len(expected)] == expected[1:]


def test_chunk_size_is_not_ignored_silently() -> None:
    p = problem()
    with pytest.warns(UserWarning, match="dpo: chunk_size is 4, but rows go through in chunks of bytes"):
        chunked_loss.LigerFusedLinearDPOLoss(chunk_size=4)(**p)
    with pytest.raises(ValueError, match=r"cpo: target has shape \(5, 7\); expected \(2 \* pairs, tokens\)"):
        chunked_loss.LigerFusedLinearCPOLoss()(p["lin_weight"], p["_input"][:5], p["target"][:5])


def test_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """`compiled=True`, the default, asks for speed, not for a compiler that runs in a step."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("torch.compile was called")

    monkeypatch.setattr(torch, "compile", refuse)
    p = problem()
    before = dict(torch._dynamo.utils.counters["stats"])
    for tokens in (TOKENS, TOKENS - 2):
        p |= {n: p[n][:, :tokens] for n in ("_input", "target", "ref_input")}
        chunked_loss.LigerFusedLinearDPOLoss()(**p)[0].backward()
        mask, advantages = p["target"] != -100, torch.ones(2 * PAIRS)
        chunked_loss.LigerFusedLinearGRPOLoss(beta=0.0)(
            p["_input"], p["lin_weight"], p["target"], mask, advantages
        )[0].backward()
    assert dict(torch._dynamo.utils.counters["stats"]) == before


# -------------------------------------------------------------------------------------------------- memory


def peak_of_a_step(name: str, pairs: int, tokens: int, vocab: int, **options: Any) -> float:
    """GB beyond inputs and gradients, forward and backward in bf16."""
    return chunked_losses.of_a_step(name, pairs, tokens, vocab, **options) / 1e9


BUDGET: dict[str, Any] = {"chunk_bytes": 256_000_000, "keep_logits": 256_000_000}


@pytest.mark.parametrize("name", chunked_losses.LOSSES)
def test_memory_is_that_of_the_budget(name: str) -> None:
    """2 or 64 pairs of 4096 tokens, 8 pairs of 32768: all but a few numbers per token is the budget's."""
    options = {} if name in ("JSD", "Cosine") else BUDGET
    few = peak_of_a_step(name, 2, 4096, 128_256, **options)
    # The weight's gradient in float32 (2.1 GB), where more than a few chunks add to it, and the budget.
    assert few < 2.7
    for pairs, tokens in ((64, 4096), (8, 32_768)):
        assert peak_of_a_step(name, pairs, tokens, 128_256, **options) < few + 0.1
    # One logits matrix of the 64 pairs would take 134 GB in bf16.


def test_memory_by_default() -> None:
    """Half the weight for a chunk of pairs, or one pair, and sums in float32 if there are many chunks."""
    assert peak_of_a_step("DPO", 4, 1024, 128_256) < 0.6
    assert peak_of_a_step("DPO", 2, 4096, 128_256) < 2.3  # a pair's logits take 2.1 GB
    assert peak_of_a_step("DPO", 64, 4096, 128_256) < 3.3
    assert peak_of_a_step("DPO", 64, 4096, 32_000) < 1.0
    assert peak_of_a_step("GRPO", 64, 4096, 128_256) < 2.3

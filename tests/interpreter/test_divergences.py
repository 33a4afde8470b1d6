"""What divergences promise beside what every op does: digits, masked vocabularies, and no array of losses per word."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch_runner import error

from liger.device import DEFAULT
from liger.plan import dense, launches
from liger_torch import functional as f
from liger_torch.autograd import call
from liger_triton import divergence, linear_jsd

OF_LOGITS: dict[str, Any] = {"student_space": "logits", "teacher_space": "logits"}


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def found(
    function: Any, student: torch.Tensor, teacher: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Loss and both gradients."""
    given = [a.to(dtype).requires_grad_() for a in (student, teacher)]
    loss = function(*given)
    return loss, *torch.autograd.grad(loss, given, torch.ones_like(loss))


def both(options: divergence.Options, labels: torch.Tensor | None = None) -> tuple[Any, Any]:
    """The kernels and the reference as functions of student and teacher."""
    return (
        lambda s, t: call(divergence.JSD, options, s, t, labels)[0],
        lambda s, t: divergence.JSD.reference((s, t, labels), options)[0],
    )


FORMS = {
    "kl of probs": {"beta": 0.0, "teacher_space": "probs", "eps": 1e-10},
    "forward": {"beta": 0.0},
    "reverse": {"beta": 1.0},
    "jsd": {"beta": 0.3},
    "forward of logits": {"beta": 0.0, **OF_LOGITS},
    "reverse of logits": {"beta": 1.0, **OF_LOGITS},
    "jsd of logits": {"beta": 0.3, "temperature": 0.7, **OF_LOGITS},
    "tvd of logits": {"kind": "tvd", **OF_LOGITS},
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_masked_vocabulary(form: dict[str, Any], recompute: bool) -> None:
    """Words of no probability, whole blocks of them, in both models: finite losses and gradients, and the right ones."""
    options = divergence.Options(**form, reduction="sum", recompute=recompute)
    dead = torch.arange(9000) % 3 == 0
    dead[:4200] = True
    student, teacher = (draw(2, 9000, seed=i).masked_fill(dead, -torch.inf) for i in range(2))
    if options.student_space != "logits":
        student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    if options.teacher_space == "probs":
        teacher = teacher.exp()
    ours, reference = both(options)
    for a, b in zip(
        found(ours, student, teacher, torch.float32),
        found(reference, student, teacher, torch.float64),
        strict=True,
    ):
        if (
            form.get("teacher_space") == "probs"
        ):  # the derivative by a probability of 0 is that of eps, or infinite
            a, b = (x[..., ~dead] if x.ndim else x for x in (a, b))
        assert a.isfinite().all()
        assert error(a, b) < 3e-6


MASKS = {"-inf": -torch.inf, "lowest": torch.finfo(torch.float32).min}


@pytest.mark.parametrize("n_cols", [600, 33_000])
@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_models_that_mask_the_same_words_in_two_ways(mask: float, beta: float, n_cols: int) -> None:
    """Until a thread has seen another word, one that has no probability in the end is the highest it knows."""
    given = [draw(2, n_cols, seed=i) for i in range(2)]
    for rows in (slice(None, 500), slice(-70, None)):
        given[beta == 0.0][0, rows], given[beta == 1.0][0, rows] = -1e4, mask
    ours, reference = both(divergence.Options(beta=beta, reduction="tokens", **OF_LOGITS))
    for a, b in zip(found(ours, *given, torch.float32), found(reference, *given, torch.float64), strict=True):
        assert a.isfinite().all() and error(a, b) < 1e-6


SPACES = [
    (divergence.LOG_PROBS, divergence.PROBS),
    (divergence.PROBS, divergence.LOG_PROBS),
    (divergence.PROBS,) * 2,
]


@pytest.mark.parametrize("kind", ["jsd", "tvd"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("spaces", SPACES, ids="-".join)
def test_gradients_of_probabilities(spaces: tuple[str, str], beta: float, kind: str) -> None:
    student, teacher = (
        draw(3, 70, seed=i).softmax(-1) if space == divergence.PROBS else draw(3, 70, seed=i).log_softmax(-1)
        for i, space in enumerate(spaces)
    )
    options = divergence.Options(
        kind=kind, beta=beta, reduction="tokens", student_space=spaces[0], teacher_space=spaces[1]
    )
    ours, reference = both(options)
    for a, b in zip(
        found(ours, student, teacher, torch.float32),
        found(reference, student, teacher, torch.float64),
        strict=True,
    ):
        assert error(a, b) < 1e-6


def test_options_that_are_none_are_refused() -> None:
    x = draw(2, 20)
    for options, message in (
        ({"kind": "KL"}, "jsd: kind is 'KL'; choose one of 'jsd', 'tvd'"),
        ({"hard_weight": 0.5}, "jsd: hard_weight is 0.5; that is of linear_jsd, leave it at 0.0"),
        (
            {"student_space": "logit"},
            "jsd: student_space is 'logit'; choose one of 'logits', 'log_probs', 'probs'",
        ),
        (
            {"teacher_space": "logits"},
            "jsd: student_space is 'log_probs' and teacher_space 'logits'; give logits on both",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call(divergence.JSD, divergence.Options(**options), x, x, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="linear_jsd: student_space is 'probs'; choose one of 'logits'"):
        spaces = {"student_space": "probs", "teacher_space": "probs"}
        call(linear_jsd.LINEAR_JSD, linear_jsd.Options(**spaces), x, x, x, x, None, None, None)


def test_words_that_one_model_rules_out() -> None:
    """JSD stays finite; a KL is infinite only where the one it is taken over has them."""
    student, teacher = draw(3, 50), draw(3, 50, seed=1)
    student[:, :20] = -torch.inf
    for options in (divergence.Options(beta=b, reduction="tokens", **OF_LOGITS) for b in (0.2, 1.0)):
        ours, reference = both(options)
        loss, gradient, _ = found(ours, student, teacher, torch.float32)
        exact, exact_gradient, _ = found(reference, student, teacher, torch.float64)
        assert error(loss, exact) < 1e-6
        assert error(gradient, exact_gradient) < 1e-6
    ours, _ = both(divergence.Options(beta=0.0, reduction="tokens", **OF_LOGITS))
    loss, gradient, _ = found(ours, student, teacher, torch.float32)
    assert loss.isposinf().all()
    torch.testing.assert_close(gradient, student.softmax(-1) - teacher.softmax(-1))


@pytest.mark.parametrize("eps", [0.0, 1e-10])
def test_a_negative_probability(eps: float) -> None:
    """Without eps it has no logarithm: its loss and its own gradient are NaN, as torch's. Otherwise it has that of eps."""
    student, target = draw(2, 50).log_softmax(-1), draw(2, 50, seed=1).softmax(-1)
    target[0, 3] = -0.25

    def plain(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        terms = t * (t.clamp(min=eps).log() - y) if eps else F.kl_div(y, t, reduction="none")
        return terms.sum(-1)

    ours, reference = both(divergence.Options(beta=0.0, teacher_space="probs", eps=eps, reduction="tokens"))
    expected = found(plain, student, target, torch.float64)
    assert [bool(x[0].isnan().any()) for x in expected] == [eps == 0, False, eps == 0]
    for function in (ours, reference):
        for a, b in zip(found(function, student, target, torch.float32), expected, strict=True):
            torch.testing.assert_close(a, b.float(), equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("negative", ["student", "teacher"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_the_loss_of_a_negative_probability_is_nan(beta: float, negative: str) -> None:
    """Wherever its logarithm counts: KL(P || Q) has 0.25 times that of -0.25 in P, and in Q 0.25 times that of P."""
    given = {"student": draw(2, 20).softmax(-1), "teacher": draw(2, 20, seed=1).softmax(-1)}
    given[negative][0, 3] = -0.25
    spaces = {"student_space": "probs", "teacher_space": "probs"}
    for function in both(divergence.Options(beta=beta, reduction="tokens", **spaces)):
        assert function(*given.values()).isnan().tolist() == [True, False]


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_nan_is_seen_beside_eps(beta: float) -> None:
    """max(NaN, eps) is NaN, as torch's clamp has it, and not eps."""
    student, teacher = draw(2, 20).softmax(-1), draw(2, 20, seed=1).softmax(-1)
    student[0, 3] = torch.nan
    spaces = {"student_space": "probs", "teacher_space": "probs"}
    for function in both(divergence.Options(beta=beta, eps=1e-10, reduction="tokens", **spaces)):
        assert function(student, teacher).isnan().tolist() == [True, False]


@pytest.mark.parametrize("form", [FORMS["jsd"], FORMS["jsd of logits"]], ids=["log-probs", "logits"])
def test_what_an_ignored_row_holds_does_not_matter(form: dict[str, Any]) -> None:
    student, teacher = draw(3, 50), draw(3, 50, seed=1)
    student[1], teacher[1, 7] = torch.nan, torch.inf
    labels = torch.tensor([0, -100, 0])
    for reduction in ("mean_tokens", "tokens"):
        ours, reference = both(divergence.Options(**form, reduction=reduction), labels)
        for a, b in zip(
            found(ours, student, teacher, torch.float32),
            found(reference, student, teacher, torch.float64),
            strict=True,
        ):
            assert error(a, b) < 1e-6


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_models_that_nearly_agree(beta: float) -> None:
    """Where log q - log m is a thousandth, a float32 subtraction has 3 digits of it left; the kernel has 6."""
    student = draw(20, 500, scale=2.5)
    teacher = student + draw(20, 500, seed=1, scale=1e-3)
    ours, plain = both(divergence.Options(beta=beta, reduction="tokens", **OF_LOGITS))
    exact = found(plain, student, teacher, torch.float64)
    for mine, other, truth in zip(
        found(ours, student, teacher, torch.float32),
        found(plain, student, teacher, torch.float32),
        exact,
        strict=True,
    ):
        assert error(mine, truth) < 1e-2 * error(other, truth)
    for gradient, truth in zip(found(ours, student, teacher, torch.float32)[1:], exact[1:], strict=True):
        assert error(gradient, truth) < 1e-6


@pytest.mark.parametrize("agreeing", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_fused_gradients_err_no_more_than_those_of_a_plain_model(beta: float, agreeing: bool) -> None:
    """In bfloat16, against float64 (linkedin/Liger-Kernel#1432: logits rounded on the way, gradients wrong by 4-23 %)."""
    n, h, v = 48, 64, 1000
    x, w = draw(n, h, dtype=torch.bfloat16), draw(v, h, dtype=torch.bfloat16, seed=1, scale=0.2)
    if agreeing:
        teacher = ((x + draw(n, h, seed=2, scale=0.1)).bfloat16(), w.clone())
    else:
        teacher = (
            draw(n, 96, dtype=torch.bfloat16, seed=2),
            draw(v, 96, dtype=torch.bfloat16, seed=3, scale=0.2),
        )

    def plain(
        x: torch.Tensor, w: torch.Tensor, teacher_x: torch.Tensor, teacher_w: torch.Tensor
    ) -> torch.Tensor:
        logits, teacher_logits = F.linear(x, w), F.linear(teacher_x, teacher_w)
        if x.dtype == torch.bfloat16:  # as every trainer does
            logits, teacher_logits = logits.float(), teacher_logits.float()
        options = divergence.Options(beta=beta, **OF_LOGITS)
        return divergence.JSD.reference((logits, teacher_logits, None), options)[0]

    def results(function: Any, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        given = [a.detach().to(dtype).requires_grad_() for a in (x, w)]
        loss = function(*given, *(t.to(dtype) for t in teacher))
        return loss, *torch.autograd.grad(loss, given)

    exact = results(plain, torch.float64)
    theirs = results(plain, torch.bfloat16)
    ours = results(lambda *a: f.liger_fused_linear_jsd(*a, None, beta), torch.bfloat16)
    for mine, other, truth in zip(ours[1:], theirs[1:], exact[1:], strict=True):
        assert error(mine, truth) <= 1.02 * error(other, truth)
    assert abs(ours[0].double() - exact[0]) <= 1.02 * abs(theirs[0].double() - exact[0]) + 1e-6 * exact[0]


def test_no_array_of_losses_per_word() -> None:
    """Whatever is launched writes one number per token, or the gradient in the student's dtype."""
    matrix = dense((4096, 128_256), "bfloat16")
    for options in (
        divergence.Options(**OF_LOGITS),
        divergence.Options(),
        divergence.Options(reduction="tokens", **OF_LOGITS),
    ):
        for launch, _ in launches(
            divergence.JSD, options, (matrix, matrix, None), (True, False, False), DEFAULT
        ):
            assert all(o.size <= 8 * 4096 for o in launch.outputs if o.dtype == "float32"), launch.name


def test_the_models_go_through_two_workspaces_of_one_chunk() -> None:
    operands = (
        dense((8192, 4096), "bfloat16"),
        dense((128_256, 4096), "bfloat16"),
        dense((8192, 8192), "bfloat16"),
        dense((128_256, 8192), "bfloat16"),
        None,
        None,
        None,
    )
    needs = (True, True, *(False,) * 5)
    logits = [
        inputs[:2]
        for launch, inputs in launches(linear_jsd.LINEAR_JSD, linear_jsd.Options(), operands, needs, DEFAULT)
        if launch.name == "divergence_of_logits_forward"
    ]
    assert len(logits) == 4
    assert {(a.shape, a.dtype) for pair in logits for a in pair} == {((2048, 128_256), "bfloat16")}

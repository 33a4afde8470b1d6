"""Divergences of a student from a teacher."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.entry import BOTH, Entry, Operands, draw
from benchmarks.providers import EAGER, FUSED, LIGER, liger
from benchmarks.sizes import SIZES
from liger_torch import functional as f
from liger_triton import divergence

TARGET = {BOTH: 0.80}
TWICE = {(LIGER, BOTH): 2.0}


def _log_probs(n: int, vocab: int) -> torch.Tensor:
    return draw(n, vocab).detach().float().log_softmax(-1).bfloat16()


def _of_log_probs(n: int, vocab: int) -> Operands:
    return _log_probs(n, vocab).requires_grad_(), _log_probs(n, vocab), None


def _from_probs(n: int, vocab: int, student_too: bool = False) -> Operands:
    student = _log_probs(n, vocab)
    return (student.exp() if student_too else student).requires_grad_(), _log_probs(n, vocab).exp(), None


def _of_logits(n: int, vocab: int) -> Operands:
    return draw(n, vocab), draw(n, vocab).detach(), None


def plain_jsd(log_q: torch.Tensor, log_p: torch.Tensor, beta: float = 0.5) -> torch.Tensor:
    """Of student q and teacher p in float32, per token; beta 0 is KL(p, q)."""
    log_q, log_p = log_q.float(), log_p.float()
    q, p = log_q.exp(), log_p.exp()
    if beta == 0.0:
        return (p * (log_p - log_q)).sum(-1)
    log_m = (beta * p + (1 - beta) * q).log()
    return (beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m)).sum(-1)


def _plain_kl(log_q: torch.Tensor, p: torch.Tensor, _: None) -> torch.Tensor:
    p = p.float()
    return (p * (p.clamp(min=1e-10).log() - log_q.float())).sum() / log_q.shape[0]


def _plain_of_logits(beta: float, student: torch.Tensor, teacher: torch.Tensor, _: None) -> torch.Tensor:
    return plain_jsd(student.float().log_softmax(-1), teacher.float().log_softmax(-1), beta).mean()


def _plain_tvd(student: torch.Tensor, teacher: torch.Tensor, _: None) -> torch.Tensor:
    student, teacher = student.float(), teacher.float()
    return 0.5 * (student - teacher).abs().sum() / student.shape[0]


def _plain_tvd_of_logits(student: torch.Tensor, teacher: torch.Tensor, _: None) -> torch.Tensor:
    return _plain_tvd(student.float().softmax(-1), teacher.float().softmax(-1), None)


def _jsd_of_logits(beta: float, student: torch.Tensor, teacher: torch.Tensor, _: None) -> torch.Tensor:
    return f.liger_jsd(student, teacher, beta=beta, from_logits=True)


def entries() -> Iterator[Entry]:
    """At the vocabularies of Llama 2 and 3."""
    kl, jsd, tvd = liger("liger_kl_div"), liger("liger_jsd"), liger("liger_tvd")
    batch: dict[str, Any] = {"reduction": "batchmean"}
    logits: dict[str, Any] = {"student_space": divergence.LOGITS, "teacher_space": divergence.LOGITS}
    probs: dict[str, Any] = {"student_space": divergence.PROBS, "teacher_space": divergence.PROBS}
    for n, v in SIZES.divergences:
        yield Entry(
            f"kl_div {n}x{v}",
            divergence.KL_DIV,
            divergence.Options(beta=0.0, teacher_space=divergence.PROBS, eps=1e-10),
            functools.partial(_from_probs, n, v),
            lambda y, t, _: f.liger_kl_div(y, t, **batch),
            {
                EAGER: _plain_kl,
                FUSED: lambda y, t, _: F.kl_div(y, t, **batch),
                LIGER: lambda y, t, _: kl(y, t, **batch),
            },
            step=True,
            target=TARGET,
            ahead=TWICE,
        )
        yield Entry(
            f"jsd {n}x{v}",
            divergence.JSD,
            divergence.Options(),
            functools.partial(_of_log_probs, n, v),
            lambda y, t, _: f.liger_jsd(y, t),
            {EAGER: lambda y, t, _: plain_jsd(y, t).mean(), LIGER: lambda y, t, _: jsd(y, t)},
            step=True,
            target=TARGET,
            ahead=TWICE,
        )
        for name, beta in (("jsd", 0.5), ("forward kl", 0.0)):
            yield Entry(
                f"{name} of logits {n}x{v}",
                divergence.JSD,
                divergence.Options(beta=beta, **logits),
                functools.partial(_of_logits, n, v),
                functools.partial(_jsd_of_logits, beta),
                {EAGER: functools.partial(_plain_of_logits, beta)},
                step=True,
                target=TARGET,
            )
    n, v = 8192, 128_256
    yield Entry(
        f"tvd {n}x{v}",
        divergence.TVD,
        divergence.Options(kind="tvd", **probs),
        functools.partial(_from_probs, n, v, student_too=True),
        lambda y, t, _: f.liger_tvd(y, t, **batch),
        {EAGER: _plain_tvd, LIGER: lambda y, t, _: tvd(y, t, **batch)},
        step=True,
    )
    yield Entry(
        f"tvd of logits {n}x{v}",
        divergence.TVD,
        divergence.Options(kind="tvd", **logits),
        functools.partial(_of_logits, n, v),
        lambda y, t, _: f.liger_tvd(y, t, from_logits=True, **batch),
        {EAGER: _plain_tvd_of_logits},
        step=True,
    )

"""Divergences of a student from a teacher, and fused with the linear layers of both."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.entry import Entry, Function, Operands, draw, peer
from liger_torch import functional as f
from liger_triton import divergence, linear_jsd


def _log_probs(n: int, vocab: int) -> torch.Tensor:
    return draw(n, vocab).detach().float().log_softmax(-1).bfloat16()


def _of_log_probs(n: int, vocab: int, probs: bool = False) -> Operands:
    target = _log_probs(n, vocab)
    return _log_probs(n, vocab).requires_grad_(), target.exp() if probs else target, None


def _of_logits(n: int, vocab: int) -> Operands:
    return draw(n, vocab), draw(n, vocab).detach(), None


def entries() -> Iterator[Entry]:
    """At the vocabularies of Llama 2 and 3."""
    log_probs = divergence.Options(beta=0.0, teacher_space=divergence.PROBS, eps=1e-10)
    logits: dict[str, Any] = {"student_space": divergence.LOGITS, "teacher_space": divergence.LOGITS}
    for n, v in ((8192, 128_256), (16_384, 32_000)):
        yield Entry(
            f"kl_div {n}x{v}",
            divergence.KL_DIV,
            log_probs,
            functools.partial(_of_log_probs, n, v, probs=True),
            lambda y, t, _: f.liger_kl_div(y, t, reduction="batchmean"),
            {
                "torch eager": lambda y, t, _: F.kl_div(y, t, reduction="batchmean"),
                **_peer("liger_kl_div", reduction="batchmean"),
            },
            step=True,
        )
        yield Entry(
            f"jsd {n}x{v}",
            divergence.JSD,
            divergence.Options(),
            functools.partial(_of_log_probs, n, v),
            lambda y, t, _: f.liger_jsd(y, t),
            _peer("liger_jsd"),
            step=True,
        )
        for name, beta in (("jsd", 0.5), ("forward kl", 0.0)):
            yield Entry(
                f"{name} of logits {n}x{v}",
                divergence.JSD,
                divergence.Options(beta=beta, **logits),
                functools.partial(_of_logits, n, v),
                functools.partial(_jsd_of_logits, beta),
                step=True,
            )
    n, v = 8192, 128_256
    yield Entry(
        f"tvd of logits {n}x{v}",
        divergence.TVD,
        divergence.Options(kind="tvd", **logits),
        functools.partial(_of_logits, n, v),
        lambda y, t, _: f.liger_tvd(y, t, reduction="batchmean", from_logits=True),
        step=True,
    )
    yield _fused(8192, 4096, 4096, 128_256)
    yield _fused(8192, 1024, 4096, 151_936)


def _jsd_of_logits(beta: float, student: torch.Tensor, teacher: torch.Tensor, _: None) -> torch.Tensor:
    return f.liger_jsd(student, teacher, beta=beta, from_logits=True)


def _peer(name: str, **options: str) -> dict[str, Function]:
    functions = peer("liger-kernel", f"liger_kernel.transformers.functional.{name}")
    return {package: lambda y, t, _: function(y, t, **options) for package, function in functions.items()}  # noqa: B023


def _fused(n: int, h: int, teacher_h: int, v: int) -> Entry:
    def operands() -> Operands:
        student = draw(n, h), draw(v, h, scale=0.02)
        return (
            *student,
            draw(n, teacher_h).detach(),
            draw(v, teacher_h, scale=0.02).detach(),
            None,
            None,
            None,
        )

    def products(x: torch.Tensor, w: torch.Tensor, t: torch.Tensor, u: torch.Tensor, *_: object) -> object:
        # Not zeros: a product of zeros runs faster than one of numbers.
        d = torch.empty(n, v, dtype=torch.bfloat16, device="cuda").normal_()
        return lambda: (t @ u.t(), x @ w.t(), d @ w, d.t() @ x)

    functions = peer("liger-kernel", "liger_kernel.transformers.functional.liger_fused_linear_jsd")
    return Entry(
        f"linear_jsd {n} tokens, hidden {h} and {teacher_h}, vocabulary {v}",
        linear_jsd.LINEAR_JSD,
        linear_jsd.Options(),
        operands,
        lambda x, w, t, u, *_: f.liger_fused_linear_jsd(x, w, t, u),
        {package: lambda x, w, t, u, *_: function(x, w, t, u) for package, function in functions.items()},  # noqa: B023
        products,
        step=True,
    )

"""JSD fused with the linear layers of student and teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from benchmarks.entries.divergences import plain_jsd
from benchmarks.entries.heads import gradient_of_logits, head
from benchmarks.entry import BOTH, Entry, Operands
from benchmarks.providers import EAGER, LIGER, liger, peer
from liger_torch import functional as f
from liger_triton import linear_jsd


def entry(n: int, h: int, teacher_h: int, v: int, ahead: float | None = None, memory: bool = False) -> Entry:
    """A student and a teacher of their own widths, and one vocabulary."""

    def operands() -> Operands:
        t, u = head(n, teacher_h, v, frozen=True)
        return *head(n, h, v), t.detach(), u, None, None, None

    def products(
        x: torch.Tensor, w: torch.Tensor, t: torch.Tensor, u: torch.Tensor, *_: object
    ) -> Callable[[], object]:
        d = gradient_of_logits(x, w)
        return lambda: (t @ u.t(), x @ w.t(), d @ w, d.t() @ x)

    def plain(x: torch.Tensor, w: torch.Tensor, t: torch.Tensor, u: torch.Tensor, *_: None) -> torch.Tensor:
        log_q, log_p = (F.linear(*pair).float().log_softmax(-1) for pair in ((x, w), (t, u)))
        return plain_jsd(log_q, log_p).mean()

    theirs = liger("liger_fused_linear_jsd")
    trl = peer("trl", "trl.kernels.chunked_divergence.ChunkedDivergenceFunction.apply")
    return Entry(
        f"linear_jsd {n} tokens, hidden {h} and {teacher_h}, vocabulary {v}",
        linear_jsd.LINEAR_JSD,
        linear_jsd.Options(),
        operands,
        lambda x, w, t, u, *_: f.liger_fused_linear_jsd(x, w, t, u),
        {
            EAGER: plain,
            LIGER: lambda x, w, t, u, *_: theirs(x, w, t, u),
            "trl": lambda x, w, t, u, *_: trl(x, w, None, t, u, None, 0.5)[0].mean(),
        },
        products,
        step=True,
        target={BOTH: 0.90},
        ahead={} if ahead is None else {(LIGER, BOTH): ahead},
        memory=memory,
    )


def entries() -> Iterator[Entry]:
    """Llama 3 from itself, and a small Qwen 3 from a large one."""
    yield entry(8192, 4096, 4096, 128_256, ahead=1.9, memory=True)
    yield entry(8192, 1024, 4096, 151_936)

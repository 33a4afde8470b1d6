"""Cross entropy fused with the linear layer, every label valid."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.entries.heads import IGNORED, head, labels, products
from benchmarks.entry import BOTH, FORWARD, Entry, Operands
from benchmarks.providers import EAGER, FUSED, LIGER, Absent, Function, liger, peer
from liger_torch import functional as f
from liger_torch import valid_rows
from liger_triton import linear_cross_entropy


def _torch_fused(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, *_: None) -> object:
    function = getattr(F, "linear_cross_entropy", None)
    if function is None:
        raise Absent(f"torch {torch.__version__} has no F.linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()  # chunked; without options it is the plain formula
    return function(x, w, y, options=options)


def _peers(n: int, variants: bool) -> dict[str, Function]:
    theirs = liger("liger_fused_linear_cross_entropy")
    # Its package has a function and a module of this name.
    cce = peer("cut-cross-entropy", "cut_cross_entropy.linear_cross_entropy:linear_cross_entropy")
    trl = peer("trl", "trl.kernels.chunked_logprob.ChunkedLogProbFunction.apply")
    quack = peer("quack", "quack.linear_cross_entropy.chunked_linear_cross_entropy")

    def of_log_probs(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, *_: None) -> torch.Tensor:
        """As TRL's fused head has it: rows of valid labels, vocabulary chunks of 32768."""
        mask = y != IGNORED
        log_p: torch.Tensor = trl(x[mask], w, None, y[mask], 1.0, 32_768, None, 1.0, ("log_probs",))[0]
        return -log_p.sum() / mask.sum().clamp(min=1)

    found: dict[str, Function] = {
        EAGER: lambda x, w, y, *_: F.cross_entropy(F.linear(x, w).float(), y),
        FUSED: _torch_fused,
        LIGER: lambda x, w, y, *_: theirs(x, w, y),
        f"{LIGER}: accum fp32": lambda x, w, y, *_: theirs(x, w, y, accum_dtype=torch.float32),
        "cut-cross-entropy": lambda x, w, y, *_: cce(x, w, y),
        "cut-cross-entropy: exact": lambda x, w, y, *_: cce(x, w, y, filter_eps=None),
        "trl": of_log_probs,
        "quack": lambda x, w, y, *_: quack(x, w, y),
    }
    slow = [] if variants else ["cut-cross-entropy: exact", f"{LIGER}: accum fp32"]
    slow += ["trl"] if n > 8192 else []
    return {name: function for name, function in found.items() if name not in slow}


def entry(
    n: int,
    h: int,
    v: int,
    half: bool = False,
    frozen: bool = False,
    forward: bool = False,
    target: float | None = None,
    ahead: float | None = None,
    within_mb: float | None = None,
    one_chunk: bool = False,
    memory: bool = False,
    variants: bool = False,
) -> Entry:
    """With `half` every other label is ignored, and the matrix products are those of the others.

    With `one_chunk` ours may hold all the logits, as torch eager does in any case. What is slower by far than the
    others (peers' `variants`, and TRL of over 8192 tokens) is so at every size, and is not measured at each.
    """

    def operands() -> Operands:
        x, w = head(n, h, v, frozen)
        if forward:
            x, w = x.detach(), w.detach()
        return x, w, labels(n, v, half), None, None, None, None

    def ours(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, *_: None) -> object:
        valid = valid_rows(y) if half else None
        budget = 2 * n * v if one_chunk else None
        return f.liger_fused_linear_cross_entropy(x, w, y, valid_rows=valid, chunk_bytes=budget)

    def per_token(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, *_: None) -> torch.Tensor:
        loss = f.liger_fused_linear_cross_entropy(x, w, y, reduction="none")
        assert isinstance(loss, torch.Tensor)
        return loss.sum() / (y != IGNORED).sum()

    peers = _peers(n, variants)
    if one_chunk:
        peers = {EAGER: peers[EAGER]}
    elif not (half or frozen or forward):
        peers["ours: per token (recomputes)"] = per_token
    variant = ", half the labels ignored" * half + ", frozen head" * frozen + ", forward only" * forward
    variant += ", one chunk" * one_chunk
    which = FORWARD if forward else BOTH
    return Entry(
        f"linear_cross_entropy {n} tokens, hidden {h}, vocabulary {v}{variant}",
        linear_cross_entropy.LINEAR_CROSS_ENTROPY,
        linear_cross_entropy.Options(),
        operands,
        ours,
        peers,
        lambda x, w, *_: products(x[::2] if half else x, w, frozen, forward),
        step=not forward,
        target={} if target is None else {which: target},
        ahead={} if ahead is None else {(LIGER, which): ahead},
        within_mb=within_mb,
        memory=memory,
    )


def entries() -> Iterator[Entry]:
    """The heads of Llama 3 and Llama 3.2 1B, and of Gemma 2 2B."""
    llama = functools.partial(entry, h=4096, v=128_256)
    yield llama(8192, target=0.93, ahead=1.4, within_mb=1700.0, memory=True, variants=True)
    yield entry(8192, 2304, 256_000, target=0.93, ahead=2.5, memory=True)
    for n in (4096, 16_384, 32_768):
        yield llama(n, target=0.93)
    yield entry(8192, 2048, 128_256, target=0.93)
    for n in (4096, 8192, 16_384, 32_768):
        yield llama(n, one_chunk=True, target=0.96, memory=n == 8192)

"""Whether an implementation computes what it should, before it is timed."""

from __future__ import annotations

import torch

from benchmarks import checks
from benchmarks.entry import Entry, Operands
from benchmarks.passes import differentiated, outputs_of, tensors_of
from benchmarks.providers import Function


def few_rows(entry: Entry, operands: Operands) -> Operands:
    """The operands of the first few tokens."""
    if entry.op is None:
        assert entry.few is not None, entry.name
        return entry.few(operands)
    few = checks.few_rows(entry.op, operands)
    return tuple(
        t if t is None or t is whole else t.detach().clone().requires_grad_(t.requires_grad)
        for t, whole in zip(few, operands, strict=True)
    )


def results(function: Function, operands: Operands) -> list[torch.Tensor]:
    """Outputs and gradients, for cotangents that depend on the outputs' shapes alone and that every dtype holds."""
    wanted = differentiated(operands)
    if not wanted:
        return tensors_of(function(*operands))
    outputs = outputs_of(function(*operands))
    generator = torch.Generator(outputs[0].device).manual_seed(0)
    incoming = [
        torch.randn(o.shape, generator=generator, device=o.device).bfloat16().to(o.dtype) for o in outputs
    ]
    return [*outputs, *torch.autograd.grad(outputs, wanted, incoming)]


def reference_of(entry: Entry) -> Function:
    """What computes the outputs in float64."""
    if entry.op is None:
        assert entry.reference is not None, entry.name
        return entry.reference
    return checks.reference_of(entry.op, entry.options, entry.outputs)


def exact(entry: Entry, operands: Operands) -> list[torch.Tensor]:
    """Outputs and gradients of a few tokens in float64."""
    wide: list[torch.Tensor | None] = []
    for t in few_rows(entry, operands):
        if t is not None and t.is_floating_point():
            t = t.detach().double().requires_grad_(t.requires_grad)
        elif t is not None and t.dtype in (torch.int8, torch.uint8):  # torch multiplies those on a CPU only
            t = t.cpu()
        wide.append(t)
    return results(reference_of(entry), tuple(wide))


def difference(found: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    """The largest relative difference (Euclidean norm) of two lists of outputs and gradients."""
    worst = 0.0
    for a, b in zip(found, right, strict=True):
        wide = (
            torch.float64 if b.numel() < 2**24 else torch.float32
        )  # of whole operands there is no room for more
        a, b = a.to(b.device, wide), b.to(wide)
        size = b.norm().item()
        off = (a - b).norm().item()
        worst = max(worst, off / size if size else off)
    return worst if worst == worst else float("inf")  # NaN is no small error


def error(entry: Entry, function: Function, operands: Operands, right: list[torch.Tensor]) -> float:
    """Of outputs and gradients of a few tokens, `right` being the `exact` ones."""
    return difference(results(function, few_rows(entry, operands)), right)


def limit(eager_error: float | None, dtype: torch.dtype) -> float:
    """The largest error of an implementation that is timed; torch eager's own may be `limit(inf, dtype)`."""
    return checks.limit(eager_error, torch.finfo(dtype).eps)

"""Recognising RMSNorm modules and what they are swapped for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from liger_torch.functional import liger_rms_norm
from liger_torch.hf import probe
from liger_torch.hf.probe import Verdict
from liger_torch.hf.swap import original_class
from liger_triton.rms_norm import RMS_NORM, Options

KIND = "norm"


@dataclasses.dataclass(frozen=True)
class Form:
    """One way in which models write RMSNorm.

    Attributes:
        name: how reports call it.
        offset: added to the weight.
        casting: where the result is rounded, as in `liger_torch.functional.liger_rms_norm`.
        weighted: whether there is a weight.
    """

    name: str
    offset: float
    casting: str
    weighted: bool = True


FORMS = (
    Form("rms_norm[llama]", 0.0, "llama"),
    Form("rms_norm[gemma]", 1.0, "gemma"),
    Form("rms_norm[fp32 weight]", 0.0, "gemma"),
    Form("rms_norm[no weight]", 0.0, "none", weighted=False),
)

CONSTANT_EPS = (1e-6, 1e-5, 1e-8)
"""Tried where the module has no attribute for it."""

EQUAL = 0.999
"""Share of bfloat16 results that must be equal to the bit.

Two forms differ in a tenth of them or more. The same form written otherwise (a division by the root, a product with
its inverse) differs in the last place of float32, which moves one in some ten thousand values over a rounding tie.
"""


@dataclasses.dataclass(frozen=True)
class RMSNormRecipe:
    """RMSNorm by `liger_rms_norm`.

    Attributes:
        weight: the parameter's name, None without one.
        eps: its value, or the attribute that holds it.
        offset: as in `Form`.
        casting: as in `Form`.
    """

    weight: str | None
    eps: float | str
    offset: float
    casting: str

    def namespace(self, base: type[Any]) -> dict[str, Any]:
        """See `liger_torch.hf.swap.Recipe`."""
        weight_name, eps_name, offset, casting = self.weight, self.eps, self.offset, self.casting

        @functools.wraps(base.forward)
        def forward(self: nn.Module, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
            (x,) = args or kwargs.values()
            weight = None if weight_name is None else getattr(self, weight_name)
            eps = getattr(self, eps_name) if isinstance(eps_name, str) else eps_name
            return liger_rms_norm(x, weight, eps, offset, casting)

        return {"forward": forward}


def recognise(module: nn.Module) -> Verdict | None:
    """The verdict on a module; None if it is no normalisation."""
    cls = original_class(module)
    parameters = dict(module.named_parameters(recurse=False))
    if (
        any(True for _ in module.children())
        or any(p.dim() != 1 for p in parameters.values())
        or "norm" not in cls.__name__.lower()
    ):
        return None
    if len(parameters) > 1 or not probe.takes_one_argument(cls):
        return Verdict("rms_norm", None, "takes more than one tensor and one weight")
    weight, parameter = next(iter(parameters.items()), (None, None))
    hidden_size = 64 if parameter is None else parameter.shape[0]
    clone = probe.small_copy(module, {}, {})

    def run(x: torch.Tensor, w: torch.Tensor | None) -> Any:
        if weight is not None and w is not None:
            probe.give(clone, weight, w)
        return clone(x)

    best = ("rms_norm", 0.0)
    for form in FORMS:
        if form.weighted != (weight is not None):
            continue
        for eps_name, eps in _eps_candidates(module):
            try:
                share = _agreement(run, form, eps, hidden_size, clone)
            except Exception as error:  # the module's own code, fed with what it may not expect
                return Verdict(form.name, None, f"could not be probed: {type(error).__name__}: {error}")
            if share >= EQUAL:
                return Verdict(form.name, RMSNormRecipe(weight, eps_name or eps, form.offset, form.casting))
            best = max(best, (form.name, share), key=lambda candidate: candidate[1])
    if best[1] < 0.5:
        return Verdict(best[0], None, "not RMSNorm, or in a form that is not known")
    return Verdict(best[0], None, f"closest to {best[0]}, with {best[1]:.0%} of the values equal")


def _eps_candidates(module: nn.Module) -> Iterator[tuple[str | None, float]]:
    """Attributes and constants that may be the one added to the mean square."""
    attributes = [
        (name, value)
        for name, value in module.__dict__.items()
        if isinstance(value, float) and 0 < value < 0.1
    ]
    yield from attributes or ((None, eps) for eps in CONSTANT_EPS)


def _agreement(
    run: Callable[[torch.Tensor, torch.Tensor | None], Any],
    form: Form,
    eps: float,
    hidden_size: int,
    clone: nn.Module,
) -> float:
    """The smallest share of equal values over dtypes and modes; 0 where a dtype differs.

    Half of the rows are so small that eps decides about them. With a float32 weight on bfloat16 rows (mixed
    precision) the forms differ in the dtype that they return.
    """
    n_rows = max(2, 4096 // hidden_size)
    large = probe.random(n_rows, hidden_size)
    x64 = torch.cat((large * 2, large * eps**0.5 + eps**0.5))
    w64 = probe.random(hidden_size, seed=1) * 0.7 + 0.3 if form.weighted else None
    options = Options(eps=eps, offset=form.offset, casting=form.casting)
    share = 1.0
    for x_dtype, w_dtype in (
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
    ):
        x = x64.to(x_dtype)
        w = None if w64 is None else w64.to(w_dtype)
        (expected,) = RMS_NORM.reference((x, w), options)
        assert expected is not None
        for training in (True, False):
            clone.train(training)
            actual = run(x.clone(), w)
            if not isinstance(actual, torch.Tensor) or (actual.shape, actual.dtype) != (
                x.shape,
                expected.dtype,
            ):
                return 0.0
            if expected.dtype == torch.float32:
                # One rounding of bfloat16 is far coarser: llama's form in mixed precision rounds before the weight.
                equal = (actual - expected).abs() <= 1e-6 * expected.abs() + 1e-12
            else:
                equal = actual == expected
            share = min(share, equal.double().mean().item())
    return share

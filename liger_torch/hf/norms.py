"""Recognising RMSNorm and LayerNorm modules and what they are swapped for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from liger_torch.autograd import autocasting
from liger_torch.functional import liger_layer_norm, liger_rms_norm, liger_swiglu
from liger_torch.hf import probe
from liger_torch.hf.probe import Verdict
from liger_torch.hf.swap import original_class
from liger_triton import glu, layer_norm, rms_norm

KIND = "norm"
RMS_NORM, LAYER_NORM = "rms_norm", "layer_norm"


@dataclasses.dataclass(frozen=True)
class Form:
    """One way in which models write a normalisation.

    Attributes:
        op: `RMS_NORM` or `LAYER_NORM`.
        name: how reports call it.
        offset: added to the weight; by LayerNorm in the weight's own dtype, as models do.
        casting: where RMSNorm is rounded, as in `liger_torch.functional.liger_rms_norm`.
        weighted: whether there is a weight.
        gated: takes a second tensor, by whose SiLU the result is multiplied in float32.
    """

    op: str
    name: str
    offset: float = 0.0
    casting: str = "none"
    weighted: bool = True
    gated: bool = False


FORMS = (
    Form(RMS_NORM, "rms_norm[llama]", casting="llama"),
    Form(RMS_NORM, "rms_norm[gemma]", 1.0, "gemma"),
    Form(RMS_NORM, "rms_norm[fp32 weight]", casting="gemma"),
    Form(RMS_NORM, "rms_norm[no weight]", weighted=False),
    Form(RMS_NORM, "rms_norm[llama, gated]", casting="llama", gated=True),
    Form(RMS_NORM, "rms_norm[fp32 weight, gated]", casting="gemma", gated=True),
    Form(LAYER_NORM, "layer_norm"),
    Form(LAYER_NORM, "layer_norm[1 + weight]", 1.0),
    Form(LAYER_NORM, "layer_norm[no weight]", weighted=False),
)

CONSTANT_EPS = (1e-6, 1e-5, 1e-8, torch.finfo(torch.float32).eps)
"""Tried where the module has no attribute for it."""

EQUAL = 0.999
"""Share of bfloat16 results that must be equal to the bit.

Two forms differ in a tenth of them or more. The same form written otherwise (a division by the root, a product with
its inverse) differs in the last place of float32, which moves one in some ten thousand values over a rounding tie.
"""


@dataclasses.dataclass(frozen=True)
class NormRecipe:
    """A normalisation by `liger_rms_norm` or `liger_layer_norm`.

    Attributes:
        form: which.
        weight: the parameter's name, None without one.
        bias: likewise.
        eps: its value, or the attribute that holds it.
        wide: returns float32 under autocast on a GPU, as `torch.nn.functional.layer_norm` and `rms_norm` do.
    """

    form: Form
    weight: str | None
    bias: str | None
    eps: float | str
    wide: bool = False

    def namespace(self, base: type[Any]) -> dict[str, Any]:
        """See `liger_torch.hf.swap.Recipe`."""
        form, weight_name, bias_name, eps_name = self.form, self.weight, self.bias, self.eps
        wide = self.wide
        names = [p.name for p in probe.parameters_of(base.forward)]

        @functools.wraps(base.forward)
        def forward(self: nn.Module, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
            x, *gates = (*args, *(kwargs[name] for name in names[len(args) :] if name in kwargs))
            weight = None if weight_name is None else getattr(self, weight_name)
            eps = getattr(self, eps_name) if isinstance(eps_name, str) else eps_name
            if form.gated and (not gates or gates[0] is None):
                return base.forward(self, x)
            if form.op == RMS_NORM:
                y = liger_rms_norm(x, weight, eps, form.offset, form.casting).contiguous()
                return _times_silu(y, gates[0], liger_swiglu).to(x.dtype) if form.gated else y
            if wide and x.device.type != "cpu" and autocasting(x.device.type):
                x = x.float()
            if form.offset and weight is not None:
                weight = weight + form.offset
            bias = None if bias_name is None else getattr(self, bias_name)
            # Of transposed rows, the kernels' result is contiguous, and torch's own LayerNorm's: models view it so.
            return liger_layer_norm(x, weight, bias, eps).contiguous()

        return {"forward": forward}


def _times_silu(y: torch.Tensor, gate: torch.Tensor, product: Any) -> torch.Tensor:
    """The product in the wider of the two dtypes."""
    dtype = torch.promote_types(y.dtype, gate.dtype)
    return product(gate.to(dtype), y.to(dtype))


class _Probe:
    """A copy of a module, and what it computes.

    Half of the rows are so small that eps decides about them. With float32 parameters on bfloat16 rows (mixed
    precision) the forms differ in the dtype that they return.
    """

    DTYPES = (
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
    )

    def __init__(self, module: nn.Module, weight: str | None, bias: str | None) -> None:
        self.clone = probe.small_copy(module, {}, {})
        self.names = {name: seed for seed, name in enumerate((weight, bias), 1) if name is not None}
        # A sharded parameter may have any size here, or none; so may the rows of a probe.
        sizes = [parameter.shape[0] for parameter in module.parameters(recurse=False)]
        shape = getattr(module, "normalized_shape", None)
        self.hidden_size = shape[-1] if isinstance(shape, tuple) else max(sizes, default=0) or 64
        self.weight, self.bias = weight, bias

    def agreement(self, form: Form, eps: float) -> list[float]:
        """The share of equal values for all dtypes, bfloat16 first; 0 where another dtype is returned."""
        n_rows = max(1, 2048 // self.hidden_size)
        large = probe.random(n_rows, 2, self.hidden_size)
        x64 = torch.cat((large * 2, large * eps**0.5 + eps**0.5))
        return [self._share(form, eps, x64, *dtypes) for dtypes in self.DTYPES]

    def _share(
        self, form: Form, eps: float, x64: torch.Tensor, x_dtype: torch.dtype, dtype: torch.dtype
    ) -> float:
        x = x64.to(x_dtype)
        gates = [probe.random(*x.shape, seed=9).to(x_dtype)] if form.gated else []
        given = {
            name: (probe.random(self.hidden_size, seed=seed) * 0.7 + 0.3).to(dtype)
            for name, seed in self.names.items()
        }
        expected = _reference(form, eps, x, *(given.get(name or "") for name in (self.weight, self.bias)))
        if form.gated:
            expected = _times_silu(expected, gates[0], _swiglu).to(x_dtype)
        for name, values in given.items():
            probe.give(self.clone, name, values)
        share = 1.0
        for training in (True, False):
            try:
                actual = self.clone.train(training)(x.clone(), *gates)
            except RuntimeError:
                # torch's own LayerNorm takes no mixed dtypes on a GPU, nor all of them here: nothing to compare with.
                if x_dtype == dtype:
                    raise
                continue
            if not isinstance(actual, torch.Tensor):
                return 0.0
            if (actual.shape, actual.dtype) != (x.shape, expected.dtype):
                return 0.0
            if expected.dtype == torch.float32:
                # One rounding of bfloat16 is far coarser: llama's form in mixed precision rounds before the weight.
                equal = (actual - expected).abs() <= 1e-6 * expected.abs() + _slack(form, expected)
            else:
                equal = actual == expected
            share = min(share, equal.double().mean().item())
        return share

    def widens(self) -> bool:
        """See `NormRecipe`; of one that takes a single tensor."""
        x = probe.random(1, 2, self.hidden_size).bfloat16()
        for name in self.names:
            probe.give(self.clone, name, probe.random(self.hidden_size).bfloat16())
        with _AutocastOfGPU():
            return bool(self.clone(x).dtype == torch.float32)


class _AutocastOfGPU(TorchFunctionMode):
    """torch's own normalisations with float32 results, as autocast on a GPU gives them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Cast what is normalised."""
        if func in (nn.functional.layer_norm, nn.functional.rms_norm):
            args = [a.float() if isinstance(a, torch.Tensor) else a for a in args]
            kwargs = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def _swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    (y,) = glu.SWIGLU.reference((gate, up), glu.Options("silu"))
    assert y is not None
    return y


def _slack(form: Form, expected: torch.Tensor) -> float:
    """An absolute error that float32 sums may make: a mean that is subtracted cancels."""
    return 1e-12 if form.op == RMS_NORM else 1e-6 * expected.abs().max().item()


def _reference(
    form: Form, eps: float, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    if form.op == RMS_NORM:
        options = rms_norm.Options(eps=eps, offset=form.offset, casting=form.casting)
        (y,) = rms_norm.RMS_NORM.reference((x, weight), options)
    else:
        weight = weight + form.offset if form.offset and weight is not None else weight
        (y,) = layer_norm.LAYER_NORM.reference((x, weight, bias), layer_norm.Options(eps=eps))
    assert y is not None
    return y


def recognise(module: nn.Module) -> Verdict | None:
    """The verdict on a module; None if it is no normalisation of the last axis."""
    cls = original_class(module)
    name = cls.__name__.lower()
    if (
        any(True for _ in module.children())
        or "norm" not in name
        # The last two are torch's parametrizations: of a weight, and not of what flows through.
        or any(
            other in name
            for other in ("batchnorm", "groupnorm", "instancenorm", "weightnorm", "spectralnorm")
        )
    ):
        return None
    op = LAYER_NORM if issubclass(cls, nn.LayerNorm) or "layernorm" in name else RMS_NORM
    parameters = dict(module.named_parameters(recurse=False))
    if any(p.dim() != 1 for p in parameters.values()):
        return Verdict(op, None, "has a weight of more than one axis")
    n_arguments = probe.n_arguments(cls)
    if n_arguments not in (1, 2):
        return Verdict(op, None, "takes more than a tensor and a gate")
    gated = n_arguments == 2
    weight, bias = _weight_and_bias(parameters)
    if len(parameters) > (weight is not None) + (bias is not None):
        return Verdict(op, None, "has parameters beside a weight and a bias")
    closest = (op, 0.0)
    try:
        probed = _Probe(module, weight, bias)
        for form in FORMS:
            if (form.weighted, form.gated) != (weight is not None, gated):
                continue
            if form.op == RMS_NORM and bias is not None:
                continue
            for eps_name, eps in _eps_candidates(module):
                shares = probed.agreement(form, eps)
                if min(shares) >= EQUAL:
                    recipe = NormRecipe(form, weight, bias, eps_name or eps, not gated and probed.widens())
                    return Verdict(form.name, recipe)
                closest = max(closest, (form.name, shares[0]), key=lambda found: found[1])
    except Exception as error:  # the module's own code, fed with what it may not expect
        return Verdict(op, None, f"could not be probed: {type(error).__name__}: {error}")
    if closest[1] == 0:
        return Verdict(closest[0], None, "not a normalisation in any form that is known")
    return Verdict(closest[0], None, f"closest to {closest[0]}, with {closest[1]:.0%} of the values equal")


def _weight_and_bias(parameters: dict[str, nn.Parameter]) -> tuple[str | None, str | None]:
    """The names of the two; a single parameter is the weight unless it is called bias."""
    bias = "bias" if "bias" in parameters else None
    return next((name for name in parameters if name != bias), None), bias


def _eps_candidates(module: nn.Module) -> Iterator[tuple[str | None, float]]:
    """Attributes and constants that may be the one added to the mean square."""
    attributes = [
        (name, value)
        for name, value in module.__dict__.items()
        if isinstance(value, float) and 0 < value < 0.1
    ]
    yield from attributes or ((None, eps) for eps in CONSTANT_EPS)

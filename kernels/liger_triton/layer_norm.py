"""LayerNorm as ops, with and without residual add; the formula and the kernels are in `norm`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from liger.backend import Array, Backend
from liger.launch import Spec
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import layer_norm as reference
from liger_triton import norm
from liger_triton.norm import Gradients


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What LayerNorm is asked to do beside its arrays.

    Attributes:
        eps: added to the variance.
    """

    eps: float = 1e-6
    offset: ClassVar[float] = 0.0
    casting: ClassVar[str] = "none"
    in_place: ClassVar[bool] = False
    center: ClassVar[bool] = True


# ------------------------------------------------------------------------------------------------- algorithms


def _layer_norm_forward(
    backend: Backend, operands: Arrays, options: Options, needs: Needs
) -> tuple[Arrays, Arrays]:
    x, weight, bias = operands
    result = norm.forward(backend, x, None, weight, bias, options)
    return (result.y,), (result.mean, result.rstd)


def _layer_norm_backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    (dy,) = cotangents
    weight, bias, mean, rstd = (kept[name] for name in ("weight", "bias", "mean", "rstd"))
    return norm.backward(backend, dy, None, kept["x"], weight, bias, mean, rstd, options, Gradients(*needs))


def _add_layer_norm_forward(
    backend: Backend, operands: Arrays, options: Options, needs: Needs
) -> tuple[Arrays, Arrays]:
    x, residual, weight, bias = operands
    result = norm.forward(backend, x, residual, weight, bias, options)
    return (result.y, result.sum), (result.mean, result.rstd)


def _add_layer_norm_backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    dy, ds = cotangents
    weight, bias, mean, rstd = (kept[name] for name in ("weight", "bias", "mean", "rstd"))
    want_dx, _, want_dw, want_db = needs
    dx, dw, db = norm.backward(
        backend, dy, ds, kept["sum"], weight, bias, mean, rstd, options,
        Gradients(want_dx, want_dw, want_db),
    )  # fmt: skip
    return dx, None, dw, db


# -------------------------------------------------------------------------------------------------------- ops


def _check_layer_norm(operands: tuple[Spec | None, ...], options: Options) -> None:
    x, weight, bias = operands
    assert x is not None
    norm.check_operands("layer_norm", x, None, weight, bias, options)


def _check_add_layer_norm(operands: tuple[Spec | None, ...], options: Options) -> None:
    x, residual, weight, bias = operands
    assert x is not None and residual is not None
    norm.check_operands("add_layer_norm", x, residual, weight, bias, options)


def _statistics(x: Spec) -> tuple[Spec, Spec]:
    return Spec(x.shape[:-1], "float32"), Spec(x.shape[:-1], "float32")


def _infer_layer_norm(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    x = operands[0]
    assert x is not None
    return (Spec(x.shape, x.dtype),), _statistics(x)


def _infer_add_layer_norm(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    x = operands[0]
    assert x is not None
    return (Spec(x.shape, x.dtype), Spec(x.shape, x.dtype)), _statistics(x)


def _reference(operands: Arrays, options: Options) -> Arrays:
    x, weight, bias = operands
    return (reference.layer_norm(x, weight, bias, eps=options.eps),)


def _add_reference(operands: Arrays, options: Options) -> Arrays:
    x, residual, weight, bias = operands
    return reference.add_layer_norm(x, residual, weight, bias, eps=options.eps)


_VECTORS = (Operand("weight", "shared", optional=True), Operand("bias", "shared", optional=True))
_SAVED = (
    Output("mean", "rows", differentiable=False, axes=0),
    Output("rstd", "rows", differentiable=False, axes=0),
)

LAYER_NORM = Op(
    name="layer_norm",
    operands=(Operand("x", "rows"), *_VECTORS),
    outputs=(Output("y", "rows"),),
    saved=_SAVED,
    options=Options,
    check=_check_layer_norm,
    infer=_infer_layer_norm,
    forward=_layer_norm_forward,
    backward=_layer_norm_backward,
    reference=_reference,
    keeps=lambda options, needs: ("x", "weight", "bias"),
)

ADD_LAYER_NORM = Op(
    name="add_layer_norm",
    operands=(Operand("x", "rows"), Operand("residual", "rows"), *_VECTORS),
    outputs=(Output("y", "rows"), Output("sum", "rows")),
    saved=_SAVED,
    options=Options,
    check=_check_add_layer_norm,
    infer=_infer_add_layer_norm,
    forward=_add_layer_norm_forward,
    backward=_add_layer_norm_backward,
    reference=_add_reference,
    keeps=lambda options, needs: ("sum", "weight", "bias"),
    gradient_like=(("x", "sum"),),
    same_gradient=(("residual", "x"),),
)

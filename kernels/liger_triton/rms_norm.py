"""RMSNorm as ops, with and without residual add; the formula and the kernels are in `norm`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from liger import check
from liger.backend import Array, Backend
from liger.launch import Spec, promote
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import rms_norm as reference
from liger_triton import norm
from liger_triton.norm import Gradients

CASTINGS = ("llama", "gemma", "none")


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What RMSNorm is asked to do beside its arrays.

    Attributes:
        eps: added to the mean square.
        offset: added to the weight (1.0 for Gemma).
        casting: where the result is rounded to x's dtype: "llama" before the weight, "gemma" and "none" after it.
        in_place: the backward pass may write dx over dy.
    """

    eps: float = 1e-6
    offset: float = 0.0
    casting: str = "llama"
    in_place: bool = False
    center: ClassVar[bool] = False


# ------------------------------------------------------------------------------------------------- algorithms


def _rms_norm_forward(
    backend: Backend, operands: Arrays, options: Options, needs: Needs
) -> tuple[Arrays, Arrays]:
    x, weight = operands
    result = norm.forward(backend, x, None, weight, None, options)
    return (result.y,), (result.rstd,)


def _rms_norm_backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    (dy,) = cotangents
    want_dx, want_dw = needs
    dx, dw, _ = norm.backward(
        backend, dy, None, kept["x"], kept["weight"], None, None, kept["rstd"], options,
        Gradients(want_dx, want_dw, False),
    )  # fmt: skip
    return dx, dw


def _add_rms_norm_forward(
    backend: Backend, operands: Arrays, options: Options, needs: Needs
) -> tuple[Arrays, Arrays]:
    x, residual, weight = operands
    result = norm.forward(backend, x, residual, weight, None, options)
    return (result.y, result.sum), (result.rstd,)


def _add_rms_norm_backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    dy, ds = cotangents
    want_dx, _, want_dw = needs
    dx, dw, _ = norm.backward(
        backend, dy, ds, kept["sum"], kept["weight"], None, None, kept["rstd"], options,
        Gradients(want_dx, want_dw, False),
    )  # fmt: skip
    return dx, None, dw


# -------------------------------------------------------------------------------------------------------- ops


def _check_rms_norm(operands: tuple[Spec | None, ...], options: Options) -> None:
    x, weight = operands
    assert x is not None
    norm.check_operands("rms_norm", x, None, weight, None, options)
    check.one_of("rms_norm", "casting", options.casting, CASTINGS)


def _check_add_rms_norm(operands: tuple[Spec | None, ...], options: Options) -> None:
    x, residual, weight = operands
    assert x is not None and residual is not None
    norm.check_operands("add_rms_norm", x, residual, weight, None, options)
    check.one_of("add_rms_norm", "casting", options.casting, CASTINGS)


def _infer(x: Spec, weight: Spec | None, options: Options) -> tuple[Spec, Spec]:
    out_dtype = (
        promote(x.dtype, weight.dtype) if weight is not None and options.casting == "llama" else x.dtype
    )
    return Spec(x.shape, out_dtype), Spec(x.shape[:-1], "float32")


def _infer_rms_norm(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    x, weight = operands
    assert x is not None
    y, rstd = _infer(x, weight, options)
    return (y,), (rstd,)


def _infer_add_rms_norm(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    x, _, weight = operands
    assert x is not None
    y, rstd = _infer(x, weight, options)
    return (y, Spec(x.shape, x.dtype)), (rstd,)


def _reference(operands: Arrays, options: Options) -> Arrays:
    x, weight = operands
    return (reference.rms_norm(x, weight, eps=options.eps, offset=options.offset, casting=options.casting),)


def _add_reference(operands: Arrays, options: Options) -> Arrays:
    x, residual, weight = operands
    return reference.add_rms_norm(
        x, residual, weight, eps=options.eps, offset=options.offset, casting=options.casting
    )


RMS_NORM = Op(
    name="rms_norm",
    operands=(Operand("x", "rows"), Operand("weight", "shared", optional=True)),
    outputs=(Output("y", "rows"),),
    saved=(Output("rstd", "rows", differentiable=False, axes=0),),
    options=Options,
    check=_check_rms_norm,
    infer=_infer_rms_norm,
    forward=_rms_norm_forward,
    backward=_rms_norm_backward,
    reference=_reference,
    keeps=lambda options, needs: ("x", "weight"),
)

ADD_RMS_NORM = Op(
    name="add_rms_norm",
    operands=(Operand("x", "rows"), Operand("residual", "rows"), Operand("weight", "shared", optional=True)),
    outputs=(Output("y", "rows"), Output("sum", "rows")),
    saved=(Output("rstd", "rows", differentiable=False, axes=0),),
    options=Options,
    check=_check_add_rms_norm,
    infer=_infer_add_rms_norm,
    forward=_add_rms_norm_forward,
    backward=_add_rms_norm_backward,
    reference=_add_reference,
    keeps=lambda options, needs: ("sum", "weight"),
    gradient_like=(("x", "sum"),),
    same_gradient=(("residual", "x"),),
)

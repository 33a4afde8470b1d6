"""GroupNorm, with and without weight and bias, forward and backward, for images laid out by channel or by position.

With the mean m and r = 1 / sqrt(variance + eps) of each group of neighbouring channels of an image:

    n  = (x - m) * r
    y  = n * weight + bias                           (one number per channel)

    g  = dy * weight
    dx = r * (g - mean(g) - n * mean(g * n))         (means over the group)
    dw = sum over images and positions of dy * n
    db = sum over images and positions of dy

Wu & He, arXiv:1803.08494. A group that fits into registers is read once. A larger one is swept twice by one program,
which finds it in the cache the second time, where there are groups enough to fill the GPU. One that is larger still is
read twice by many programs: each takes statistics (backward: sums) of some channels over some positions, and a second
kernel joins those of a group, always in one order. The sums per channel are what dw, db and dx are made of.

Images laid out by position (channels last) are read the same way with the axes exchanged: a program then takes
neighbouring channels, of any groups, at many positions. A held group is read there only if its channels fill whole
vectors; a slice of others would be read by the element.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from liger import check
from liger.backend import Array, Backend
from liger.launch import DTYPE_BYTES, Spec
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import group_norm as reference
from liger_triton.group_norm_held import backward_launch, forward_launch, held_tile
from liger_triton.group_norm_layout import Options as Options
from liger_triton.group_norm_layout import Shape
from liger_triton.group_norm_split import (
    apply_launch,
    channel_sums_launch,
    input_gradient_launches,
    split_of,
    statistics_launches,
)
from liger_triton.group_norm_swept import backward_swept_launch, forward_swept_launch, swept_tile
from liger_triton.norm import Gradients
from liger_triton.reduce import summed

# -------------------------------------------------------------------------------------------------- algorithm


def _dtype(backend: Backend, array: Array | None) -> str | None:
    return None if array is None else backend.dtype(array)


def _forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
    x, weight, bias = (None if array is None else backend.dense(array) for array in operands)
    assert x is not None
    shape, dtype = Shape.of(x, options.channels_last), backend.dtype(x)
    if 0 in shape:
        statistics = (shape.images, options.num_groups)
        return (backend.empty(x.shape, dtype),), (
            backend.zeros(statistics, "float32"),
            backend.zeros(statistics, "float32"),
        )
    dtypes = dtype, _dtype(backend, weight), _dtype(backend, bias)
    # Pointers of arrays that are absent are never read; any valid one will do.
    vectors = (x if weight is None else weight, x if bias is None else bias)
    tile = held_tile(shape, DTYPE_BYTES[dtype], options, backend.device)
    swept = swept_tile(shape, DTYPE_BYTES[dtype], options, backend.device)
    if tile is not None:
        y, mean, rstd = backend.launch(forward_launch(shape, *dtypes, options, tile), x, *vectors)
    elif swept is not None:
        y, mean, rstd = backend.launch(forward_swept_launch(shape, *dtypes, options, swept), x, *vectors)
    else:
        split = split_of(shape, options, backend.device)
        compute, join = statistics_launches(shape, dtype, options, split)
        mean, rstd = backend.launch(join, *backend.launch(compute, x))
        (y,) = backend.launch(apply_launch(shape, *dtypes, options, split), x, *vectors, mean, rstd)
    return (y,), (mean, rstd)


def _backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    want = Gradients(*needs)
    bias, mean, rstd = kept["bias"], kept["mean"], kept["rstd"]
    x, weight, dy = (
        None if array is None else backend.dense(array) for array in (kept["x"], kept["weight"], *cotangents)
    )
    assert x is not None and dy is not None
    shape = Shape.of(x, options.channels_last)
    dtype, dy_dtype, weight_dtype = backend.dtype(x), backend.dtype(dy), _dtype(backend, weight)
    weight_operand = x if weight is None else weight
    dx = dw = db = None
    tile = held_tile(shape, DTYPE_BYTES[dtype], options, backend.device)
    swept = None if 0 in shape else swept_tile(shape, DTYPE_BYTES[dtype], options, backend.device)
    if 0 in shape:
        dx = backend.empty(x.shape, dtype)
        dw = db = backend.zeros((0, shape.channels), "float32")
    elif tile is not None:
        launch = backward_launch(shape, dtype, dy_dtype, weight_dtype, want, options, tile, backend.device)
        dx, dw, db = backend.launch(launch, dy, x, weight_operand, mean, rstd)
    elif swept is not None and want.x:
        launch = backward_swept_launch(shape, dtype, dy_dtype, weight_dtype, want, options, swept)
        dx, dw, db = backend.launch(launch, dy, x, weight_operand, mean, rstd)
    else:
        split = split_of(shape, options, backend.device)
        launch = channel_sums_launch(
            shape, dtype, dy_dtype, want.x or want.weight, want.x or want.bias, options, split
        )
        slopes, levels = backend.launch(launch, dy, x, mean, rstd)
        if want.x:
            join, gradient = input_gradient_launches(shape, dtype, dy_dtype, weight_dtype, options, split)
            slope, level = backend.launch(join, slopes, levels, weight_operand)
            (dx,) = backend.launch(gradient, dy, x, weight_operand, mean, rstd, slope, level)
        rows = (shape.images * split.parts(shape), shape.channels)
        dw = backend.reshape(slopes, rows) if want.weight else None
        db = backend.reshape(levels, rows) if want.bias else None
    dw, db = summed(backend, (dw if want.weight else None, db if want.bias else None), (kept["weight"], bias))
    return dx if want.x else None, dw, db


# --------------------------------------------------------------------------------------------------------- op


def _check(operands: tuple[Spec | None, ...], options: Options) -> None:
    x, *vectors = operands
    assert x is not None
    if len(x.shape) != 3:
        order = "positions, channels" if options.channels_last else "channels, positions"
        raise ValueError(f"group_norm: x has shape {tuple(x.shape)}; expected (images, {order}).")
    check.dtype("group_norm", "x", x, check.REFERENCE_FLOATS)
    channels = x.shape[2 if options.channels_last else 1]
    if options.num_groups < 1 or channels < 1 or channels % options.num_groups:
        raise ValueError(
            f"group_norm: num_groups is {options.num_groups}, and x has {channels} channels; choose a divisor of "
            "that number."
        )
    for name, vector in zip(("weight", "bias"), vectors, strict=True):
        if vector is not None:
            check.dtype("group_norm", name, vector, check.REFERENCE_FLOATS)
            check.shape("group_norm", name, vector, (channels,), "one number per channel of x")
    check.in_range("group_norm", "eps", options.eps, 0.0, sys.float_info.max)


def _infer(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    x = operands[0]
    assert x is not None
    statistic = Spec((x.shape[0], options.num_groups), "float32")
    return (Spec(x.shape, x.dtype),), (statistic, statistic)


def _reference(operands: Arrays, options: Options) -> Arrays:
    x, weight, bias = operands
    return (
        reference.group_norm(
            x,
            weight,
            bias,
            num_groups=options.num_groups,
            eps=options.eps,
            channels_last=options.channels_last,
        ),
    )


GROUP_NORM = Op(
    name="group_norm",
    operands=(
        Operand("x", "rows", axes=2),
        Operand("weight", "shared", optional=True),
        Operand("bias", "shared", optional=True),
    ),
    outputs=(Output("y", "rows", axes=2),),
    saved=(
        Output("mean", "rows", differentiable=False),
        Output("rstd", "rows", differentiable=False),
    ),
    options=Options,
    check=_check,
    infer=_infer,
    forward=_forward,
    backward=_backward,
    reference=_reference,
    keeps=lambda options, needs: ("x", "weight", "bias"),
)

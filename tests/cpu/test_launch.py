"""Launches are plain data: hashable, cached, the same for both frameworks, with formulas checked by hand."""

from __future__ import annotations

import dataclasses
import itertools

import jax.numpy as jnp
import pytest
import torch

from liger.device import DEFAULT, PRESETS
from liger.launch import (
    DTYPE_BYTES,
    TRITON_DTYPE,
    Launch,
    Spec,
    cdiv,
    next_power_of_2,
    previous_power_of_2,
    promote,
)
from liger.plan import Planned, dense, launches
from liger_torch.backend import DTYPES
from liger_triton import norm, rms_norm
from liger_triton.catalogue import catalogue

FLOATS = ("float16", "bfloat16", "float32", "float64")


@pytest.mark.parametrize(("first", "second"), list(itertools.product(FLOATS, FLOATS)))
def test_promotion_is_that_of_torch_and_jax(first: str, second: str) -> None:
    assert DTYPES[promote(first, second)] == torch.promote_types(DTYPES[first], DTYPES[second])
    assert promote(first, second) == jnp.promote_types(first, second).name


def test_dtypes_have_their_sizes() -> None:
    assert set(DTYPE_BYTES) == set(TRITON_DTYPE) == set(DTYPES)
    for name, size in DTYPE_BYTES.items():
        assert DTYPES[name].itemsize == jnp.dtype(name).itemsize == size


def test_integer_helpers() -> None:
    for n in range(1, 300):
        assert 2 ** (next_power_of_2(n).bit_length() - 1) == next_power_of_2(n)
        assert n <= next_power_of_2(n) < 2 * n
        assert n / 2 < previous_power_of_2(n) <= n
        for d in (1, 2, 7, 128):
            assert (cdiv(n, d) - 1) * d < n <= cdiv(n, d) * d
    assert next_power_of_2(0) == 1
    assert cdiv(0, 7) == 0


def test_bytes_and_traffic() -> None:
    launch = Launch(
        kernel=None,
        grid=(3,),
        inputs=(
            Spec((10, 4), "bfloat16", passes=2),
            Spec((4,), "float32", resident=True),
            Spec((9, 9), "int64", unread=True),
            Spec((1000,), "float32", lookups=10),
            Spec((5,), "float32", lookups=10),
        ),
        outputs=(Spec((10, 4), "float16"), Spec((0,), "float32")),
    )
    assert launch.bytes == 10 * 4 * 2 + 4 * 4 + 10 * 4 + 5 * 4 + 10 * 4 * 2
    assert launch.traffic == launch.bytes + 10 * 4 * 2
    assert not launch.is_empty
    assert dataclasses.replace(launch, grid=(3, 0)).is_empty


def test_bytes_of_rms_norm_by_hand() -> None:
    options = rms_norm.Options()
    n, h = 512, 4096
    forward = norm.forward_launch(n, h, "bfloat16", "float32", None, h, None, options, DEFAULT)
    assert forward.outputs[0].dtype == "float32"  # the common dtype of x and weight
    assert forward.bytes == forward.traffic == n * h * 2 + h * 4 + n * h * 4 + n * 4
    added = norm.forward_launch(n, h, "bfloat16", "bfloat16", None, h, h, options, DEFAULT)
    assert added.bytes == 4 * n * h * 2 + h * 2 + n * 4
    backward = norm.backward_launch(
        n,
        h,
        "bfloat16",
        "bfloat16",
        "bfloat16",
        h,
        h,
        None,
        norm.Gradients(True, True, False),
        options,
        DEFAULT,
    )
    programs = backward.grid[0]
    assert backward.bytes == 3 * n * h * 2 + h * 2 + n * 4 + programs * h * 4
    frozen = norm.backward_launch(
        n,
        h,
        "bfloat16",
        "bfloat16",
        "bfloat16",
        h,
        h,
        None,
        norm.Gradients(True, False, False),
        options,
        DEFAULT,
    )
    assert frozen.bytes == 3 * n * h * 2 + h * 2 + n * 4


def test_launch_functions_are_cached() -> None:
    def make() -> Launch:
        return norm.forward_launch(7, 64, "float32", None, None, 64, None, rms_norm.Options(), DEFAULT)

    assert make() is make()


MOVES = {"embedding_forward", "embedding_keys", "embedding_row_starts"}
"""Kernels that compute nothing: they gather rows, narrow ids and look up where rows begin."""


@pytest.mark.parametrize("target", PRESETS)
def test_every_launch_is_hashable_and_in_order(target: str) -> None:
    """Kernel parameters: inputs, integers, outputs, then constants, each named; that order is all jax-triton takes."""
    device = PRESETS[target]
    for entry in catalogue(device):
        launch = entry.launch
        assert hash(launch) == hash(dataclasses.replace(launch))
        n_arguments = len(launch.inputs) + len(launch.integers) + len(launch.outputs)
        names = launch.kernel.arg_names
        assert set(names[n_arguments:]) == dict(launch.constants).keys(), entry.name
        assert len(names) == n_arguments + len(launch.constants), entry.name
        kinds = [name.endswith("_ptr") for name in names[:n_arguments]]
        expected = [True] * len(launch.inputs) + [False] * len(launch.integers) + [True] * len(launch.outputs)
        assert kinds == expected, entry.name
        for source, output in launch.aliases:
            assert launch.inputs[source].shape == launch.outputs[output].shape, entry.name
            assert launch.inputs[source].dtype == launch.outputs[output].dtype, entry.name
        assert 0 < launch.bytes <= launch.traffic, entry.name
        assert (launch.flops > 0) == (launch.name not in MOVES), entry.name
        assert launch.num_warps * device.warp_size <= 1024, entry.name
        assert all(0 < n < limit for n, limit in zip(launch.grid, (2**31, 2**16, 2**16), strict=False)), (
            entry.name
        )


def test_launches_of_an_op() -> None:
    """A plan holds what the op launches: with the arrays' strides, and only for the gradients asked for."""
    x = Planned((6, 64), "float32", (100, 1))
    operands = (x, dense((64,), "float32"))

    def names(*needs: bool) -> list[str]:
        return [
            launch.name
            for launch, _ in launches(rms_norm.RMS_NORM, rms_norm.Options(), operands, needs, DEFAULT)
        ]

    assert names(False, False) == ["norm_forward"]
    assert names(True, False) == ["norm_forward", "norm_backward"]
    assert names(True, True) == ["norm_forward", "norm_backward", "sum_partials"]
    launch, arrays = launches(rms_norm.RMS_NORM, rms_norm.Options(), operands, (False, False), DEFAULT)[0]
    assert dict(launch.constants)["x_stride"] == 100
    assert arrays[0].extent == 5 * 100 + 64
    with pytest.raises(ValueError, match="weight has shape"):
        launches(rms_norm.RMS_NORM, rms_norm.Options(), (x, dense((63,), "float32")), (False, False), DEFAULT)

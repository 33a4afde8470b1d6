"""A batch of another length compiles nothing: what is compiled into a kernel does not change with the tokens alone.

Over the catalogue, which has every op at the widths of real models, each call planned for several numbers of tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from liger.device import PRESETS
from liger.launch import Launch
from liger.plan import Planned, dense
from liger_triton.catalogue import FAMILIES, Call
from liger_triton.ops import OPS

A_FEW_FORMS = {"int2_matmul"}
"""Ops for inference, whose tiles differ between one token and many; how few forms there are is tested beside the op."""

TWO_FORMS = {"group_norm"}
"""Ops that give a group of channels one program where images are many, and several where they are few."""

CALLS = [call for family in FAMILIES for call in family()]


def with_tokens(call: Call, count: int) -> Call:
    """The call with another length of its first operand's last token axis, and of all that share it."""
    first = call.operands[0]
    assert first is not None
    axis = len(first.shape) - call.op.operands[0].axes - 1
    old = first.shape[axis]

    def changed(array: Planned | None, role: str, axes: int) -> Planned | None:
        if array is None or role != "rows" or len(array.shape) <= axes:
            return array
        at = len(array.shape) - axes - 1
        if array.shape[at] != old:
            return array
        shape = (*array.shape[:at], count, *array.shape[at + 1 :])
        is_dense = array == dense(array.shape, array.dtype)
        return dense(shape, array.dtype) if is_dense else dataclasses.replace(array, shape=shape)

    operands = tuple(
        changed(array, operand.role, operand.axes)
        for operand, array in zip(call.op.operands, call.operands, strict=True)
    )
    return dataclasses.replace(call, operands=operands)


def compiled(launch: Launch) -> tuple[Any, ...]:
    """All that a compiled kernel depends on but the divisibility of its integers, which Triton looks at."""
    dtypes = tuple(spec.dtype for spec in (*launch.inputs, *launch.outputs))
    return launch.constants, launch.num_warps, launch.num_stages, dtypes


def kernels(call: Call, target: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for entry in call.entries(PRESETS[target]):
        yield entry.launch.name, compiled(entry.launch)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
@pytest.mark.parametrize(
    "call", [call for call in CALLS if call.op.name not in A_FEW_FORMS], ids=lambda call: call.name
)
def test_the_number_of_tokens_compiles_nothing(call: Call, target: str) -> None:
    usual = set(kernels(call, target))
    forms = [usual]
    for count in (2, 63, 1000, 4097, 100_003):
        found = set(kernels(with_tokens(call, count), target))
        if not any(found <= form for form in forms):
            assert len(forms) < (2 if call.op.name in TWO_FORMS else 1), f"{count} tokens compile anew"
            forms.append(found)


def test_every_op_is_in_the_catalogue() -> None:
    assert {call.op.name for call in CALLS} == {op.name for op in OPS}

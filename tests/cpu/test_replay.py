"""A pass that is replayed is the pass itself: the same launches, of the same memory, with the same results.

In place of a kernel something writes numbers that depend on the launch and on what its inputs point to. Whatever goes to
the wrong place shows in the results, for all cases within seconds; that kernels compute the right thing is tested
elsewhere.
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from cases import CASES, Case
from layouts import laid_out
from torch.utils._python_dispatch import TorchDispatchMode
from torch_runner import cotangents, differentiate, tensors

from liger import interpret
from liger.launch import DTYPE_BYTES, Launch, Spec
from liger_torch import autograd, plans
from liger_torch.autograd import call
from liger_torch.functional import liger_rms_norm
from liger_torch.replay import NotLaunchesAlone, Recording

READ = 8
"""Bytes of every input that matter; no array that is read has fewer."""

WITH_PRODUCTS = {"linear_cross_entropy", "linear_jsd", "linear_logprobs"}
"""Ops that are more than launches."""

Found = tuple[list[Launch], list[torch.Tensor | None]]


def write(launch: Launch, inputs: Sequence[int], outputs: Sequence[int]) -> None:
    """Fill the outputs with small integers that tell where they come from."""

    def least(spec: Spec) -> int:
        return spec.size * DTYPE_BYTES[spec.dtype]

    read = [
        ctypes.string_at(address, min(READ, least(spec))) if not spec.unread else b""
        for address, spec in zip(inputs, launch.inputs, strict=True)
    ]
    for i, (address, spec) in enumerate(zip(outputs, launch.outputs, strict=True)):
        seed = zlib.crc32(repr((launch.name, launch.constants, launch.integers, read, i)).encode())
        ctypes.memset(address, seed % 50, least(spec))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    """CPU tensors take the way of the kernels, in whose place `write` comes."""
    found: list[Launch] = []
    monkeypatch.setattr(autograd, "INTERPRET", True)
    monkeypatch.setattr(autograd, "_plans", {})
    monkeypatch.setattr(
        interpret,
        "run",
        lambda launch, *arrays: launch.is_empty or (found.append(launch), write(launch, *arrays)),
    )
    yield found


def results(case: Case, operands: list[torch.Tensor | None], launched: list[Launch]) -> Found:
    """Launches; outputs and gradients."""
    launched.clear()
    outputs = list(call(case.op, case.options, *operands))
    gradients: list[torch.Tensor | None] = []
    if any(o is not None and o.requires_grad for o in outputs):
        gradients = differentiate(case, "bfloat16", operands, outputs, cotangents(case, "bfloat16", outputs))
    return list(launched), [*outputs, *gradients]


def unrecorded(*_: object) -> Recording:
    raise NotLaunchesAlone


@pytest.mark.parametrize("layout", ["dense", "gaps", "transposed"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_replayed_and_run_anew_are_the_same(
    case: Case, layout: str, launched: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    operands = [laid_out(t, layout) for t in tensors(case, "bfloat16")]
    first = results(case, operands, launched)
    second = results(case, operands, launched)
    monkeypatch.setattr(autograd, "_plans", {})
    monkeypatch.setattr(plans, "record", unrecorded)
    plain = results(case, operands, launched)
    assert plain[0] or not all(t.numel() for t in operands if t is not None)
    for launches, arrays in (first, second):
        assert launches == plain[0]
        for a, b in zip(arrays, plain[1], strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
                assert torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_what_is_launches_alone_is_replayed(case: Case, launched: list[Launch]) -> None:
    results(case, tensors(case, "bfloat16"), launched)
    for plan in autograd._plans.values():
        passes = [plan.forward, *plan.backwards.values()]
        if case.op.name not in WITH_PRODUCTS and not case.name.startswith("embedding"):
            assert all(isinstance(p, Recording) for p in passes)


OF_HEADS = [c for c in CASES if c.op.operands[0].name == "q"]


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("case", OF_HEADS, ids=lambda c: c.name)
def test_axes_are_exchanged_inside(
    case: Case, recorded: bool, launched: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """q and k by head are what they are by token, seen otherwise: the same launches of the same memory."""
    if not recorded:
        monkeypatch.setattr(plans, "record", unrecorded)
    by_token = tensors(case, "bfloat16")

    def passes(operands: list[torch.Tensor | None], swapped: int) -> Found:
        launched.clear()
        outputs = call(case.op, case.options, *operands, swapped=swapped)
        shown = [t if t is None or not swapped else t.transpose(1, 2) for t in outputs]
        found = differentiate(case, "bfloat16", operands, shown, cotangents(case, "bfloat16", shown))
        return list(launched), [*outputs, *found]

    by_head = [
        t if t is None or i > 1 else t.detach().transpose(1, 2).requires_grad_(t.requires_grad)
        for i, t in enumerate(by_token)
    ]
    expected, found = passes(by_token, 0), passes(by_head, 2)
    assert found[0] == expected[0]
    for i, (a, b) in enumerate(zip(found[1], expected[1], strict=True)):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert torch.equal(a.transpose(1, 2) if i < 4 else a, b)  # q, k and their gradients


class Watch(TorchDispatchMode):
    """Sees every operator of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_mode_sees_what_is_allocated_and_leaves_nothing_behind(launched: list[Launch]) -> None:
    x = torch.randn(4, 32, dtype=torch.bfloat16)

    def call_it() -> list[str]:
        with Watch() as watch:
            liger_rms_norm(x, None)
        return watch.seen

    assert any("empty" in name for name in call_it())
    assert not autograd._plans
    liger_rms_norm(x, None)
    assert len(autograd._plans) == 1
    assert call_it() == ["aten.empty_strided.default"] * 2  # y and 1 / rms

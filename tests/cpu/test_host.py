"""What a call costs the host, counted: Python functions entered, and what is done at the second call and not again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
from triton.compiler import CompiledKernel

from liger import interpret
from liger.launch import Launch, Spec
from liger_torch import autograd, direct
from liger_torch import functional as f

CPU = torch.device("cpu")


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.bfloat16).requires_grad_()


ANGLES = torch.randn(1, 8, 64)
LABELS = torch.randint(0, 256, (8,))

Call = Callable[[], Any]

# The function, its operands, and how many functions a forward and a backward pass enter.
CALLS: dict[str, tuple[Callable[..., Any], Callable[[], tuple[torch.Tensor, ...]], int, int]] = {
    "rms_norm": (f.liger_rms_norm, lambda: (draw(8, 256), draw(256)), 8, 3),
    "add_rms_norm": (f.liger_fused_add_rms_norm, lambda: (draw(8, 256), draw(8, 256), draw(256)), 8, 3),
    "layer_norm": (f.liger_layer_norm, lambda: (draw(8, 256), draw(256), draw(256)), 8, 3),
    "swiglu": (f.liger_swiglu, lambda: (draw(8, 256), draw(8, 256)), 8, 3),
    "rope": (f.liger_rope, lambda: (draw(1, 4, 8, 64), draw(1, 2, 8, 64), ANGLES, ANGLES), 11, 3),
    # Backward one more: the gradient that the forward pass left is handed over once.
    "cross_entropy": (f.liger_cross_entropy, lambda: (draw(8, 256), LABELS), 11, 4),
}


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """CPU tensors take the way of the kernels; the launches, which compute nothing, are noted."""
    launched: list[Launch] = []
    monkeypatch.setattr(autograd, "INTERPRET", True)
    monkeypatch.setattr(autograd, "_plans", {})
    monkeypatch.setattr(interpret, "run", lambda launch, inputs, outputs: launched.append(launch))
    return launched


def functions_entered(call: Call) -> int:
    """Functions of this project that a call enters; no comprehensions, which are none since Python 3.12."""
    count = 0

    def event(frame: Any, kind: str, argument: Any) -> None:
        nonlocal count
        ours = frame.f_globals.get("__name__", "").startswith("liger")
        count += kind == "call" and ours and not frame.f_code.co_name.startswith("<")

    sys.setprofile(event)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_was_made_before_is_short(name: str, kernels: list[Launch]) -> None:
    function, draw_operands, forward, backward = CALLS[name]
    operands = draw_operands()
    inputs = [t for t in operands if t.requires_grad]

    def back() -> None:
        torch.autograd.grad(outputs, inputs, incoming)

    for turn in range(3):
        found = function(*operands)
        outputs = found if isinstance(found, tuple) else (found,)
        incoming = [torch.ones_like(t) for t in outputs]
        if turn < 2:
            back()
    assert kernels
    assert functions_entered(lambda: function(*operands)) <= forward
    # The first one of its graph: what a second one finds used up it computes anew.
    assert functions_entered(back) <= backward


def test_another_layout_is_another_plan(kernels: list[Launch]) -> None:
    """What a launch depends on: shape, strides, dtype, gradients that are asked for."""
    x, w = draw(8, 256), draw(256)
    for other in (x, x[:4], x.detach(), x.float(), x.t().contiguous().t(), torch.cat([x, x], 1)[:, :256]):
        before = len(autograd._plans)
        for _ in range(2):
            y = f.liger_rms_norm(other, w)
        assert len(autograd._plans) == before + 1
        assert y.shape == other.shape and y.dtype == other.dtype and y.is_contiguous()
    with torch.no_grad():
        assert not f.liger_rms_norm(x, w).requires_grad
    assert len(kernels) == 13


def test_plans_are_not_kept_without_end(kernels: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autograd, "MAX_PLANS", 3)
    for n in range(1, 9):
        assert f.liger_swiglu(draw(n, 32), draw(n, 32)).shape == (n, 32)
        assert len(autograd._plans) <= 3


def test_wrong_calls_are_refused_every_time(kernels: list[Launch]) -> None:
    x = draw(8, 256)
    f.liger_rms_norm(x, draw(256))
    for _ in range(2):
        with pytest.raises(ValueError, match="weight has shape"):
            f.liger_rms_norm(x, draw(255))
        with pytest.raises(TypeError, match="weight is a list"):
            f.liger_rms_norm(x, [1.0])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="choose one of"):
            f.liger_rms_norm(x, draw(256), casting_mode="other")
        with pytest.raises(ValueError, match="weight is on meta, x on cpu"):
            f.liger_rms_norm(x, draw(256).to("meta"))
        with pytest.raises(ValueError, match="cos requires a gradient"):
            f.liger_rope(draw(1, 4, 8, 64), draw(1, 2, 8, 64), draw(1, 8, 64), ANGLES)


def test_mixed_dtypes_under_autocast(kernels: list[Launch]) -> None:
    """The promotion of one call is not forgotten at the next one, nor applied without autocast."""
    x, r = draw(8, 256), draw(8, 256).detach().float().requires_grad_()
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, total = f.liger_fused_add_rms_norm(x, r, None)
        assert y.dtype == total.dtype == torch.float32
        dx, dr = torch.autograd.grad((y, total), (x, r), (torch.ones_like(y), torch.ones_like(y)))
        assert dx.dtype == torch.bfloat16 and dr.dtype == torch.float32
        with pytest.raises(TypeError, match="residual has dtype float32 but x has bfloat16"):
            f.liger_fused_add_rms_norm(x, r, None)


# ---------------------------------------------------------------------------------- compiled kernels, run directly


class Compiled(CompiledKernel):  # type: ignore[misc]
    """A compiled kernel that notes how it is run."""

    def __init__(self, runs: list[tuple[Any, ...]]) -> None:
        self.function, self.packed_metadata = 123, (4, 1, 0)
        self._run = lambda *arguments: runs.append(arguments)


LAUNCH = Launch(
    kernel=None,
    grid=(7,),
    inputs=(Spec((4,), "float32"), Spec((4,), "float32")),
    integers=(4, 1),
    outputs=(Spec((4,), "float32"),),
    constants=(("BLOCK", 16), ("eps", 0.5)),
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[tuple[Any, ...]]]:
    """Launches that Triton dispatched, and arguments of kernels that were run directly."""
    dispatched: list[Any] = []
    runs: list[tuple[Any, ...]] = []

    def start(launch: Launch, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> Compiled:
        dispatched.append((launch, inputs, outputs))
        return Compiled(runs)

    monkeypatch.setattr(direct, "start", start)
    monkeypatch.setattr(direct, "KNOWN", True)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 1000 + index, raising=False)
    monkeypatch.setattr(triton, "__version__", "3.7.1")  # whose launcher is called as `CompiledKernel.run` is
    return dispatched, runs


def arrays() -> list[torch.Tensor]:
    found = [torch.zeros(4) for _ in range(3)]
    assert all(t.data_ptr() % 16 == 0 for t in found)
    return found


def test_the_second_launch_is_direct(gpu: tuple[list[Any], list[tuple[Any, ...]]]) -> None:
    dispatched, runs = gpu
    launches = direct.Launches([(LAUNCH, [0, 0], [2]), (LAUNCH, [2, 1], [1])], 3, 2, torch.device("cuda", 1))
    for _ in range(3):
        x, y, z = arrays()
        launches([x, y, z])
    assert len(dispatched) == 2 and len(runs) == 4
    first = (7, 1, 1, 1001, 123, (4, 1, 0), None, None, None)
    a, b, c = (t.data_ptr() for t in (x, y, z))
    assert runs[-2:] == [(*first, a, a, 4, 1, c, 16, 0.5), (*first, c, b, 4, 1, b, 16, 0.5)]


def test_every_stream_gets_its_own_launches(
    gpu: tuple[list[Any], list[tuple[Any, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, runs = gpu
    launches = direct.Launches([(LAUNCH, [0, 1], [2])], 3, 2, torch.device("cuda", 0))
    launches(arrays())
    streams = [11, 22, 11, 0]
    for stream in streams:
        monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index, stream=stream: stream)
        launches(arrays())
    assert [run[3] for run in runs] == streams


@pytest.mark.parametrize("reason", ["alignment", "hook", "version"])
def test_what_triton_has_to_see_goes_through_its_dispatch(
    reason: str, gpu: tuple[list[Any], list[tuple[Any, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatched, runs = gpu
    launches = direct.Launches([(LAUNCH, [0, 1], [2])], 3, 2, torch.device("cuda", 0))
    given = arrays()
    for _ in range(2):
        launches(given)
    assert (len(dispatched), len(runs)) == (1, 1)
    if reason == "alignment":
        given[1] = torch.zeros(5)[1:]
    elif reason == "hook":
        monkeypatch.setattr(triton.knobs.runtime.launch_enter_hook, "calls", [print])
    else:
        monkeypatch.setattr(direct, "KNOWN", False)
    launches(given)
    assert (len(dispatched), len(runs)) == (2, 1)
    assert all(a is b for a, b in zip(dispatched[-1][1], given, strict=False))


def test_a_kernel_that_is_still_being_compiled_is_not_kept(
    gpu: tuple[list[Any], list[tuple[Any, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatched, runs = gpu
    monkeypatch.setattr(direct, "start", lambda *arguments: dispatched.append(arguments))
    launches = direct.Launches([(LAUNCH, [0, 1], [2])], 3, 2, torch.device("cuda", 0))
    for _ in range(2):
        launches(arrays())
    assert len(dispatched) == 2 and not runs

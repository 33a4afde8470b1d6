"""Kernels that are run directly: when, and that it is the same as through Triton's dispatch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton

from liger_torch import direct
from liger_torch import functional as f

pytestmark = pytest.mark.gpu


def draw(*shape: int, first: int = 0) -> torch.Tensor:
    """From the element `first` of an allocation on."""
    generator = torch.Generator("cuda").manual_seed(0)
    n = torch.Size(shape).numel()
    values = torch.randn(n, generator=generator, device="cuda").bfloat16()
    memory = torch.empty(n + first, device="cuda", dtype=torch.bfloat16)
    memory[first:] = values
    return memory[first:].view(shape).requires_grad_()


def passes(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = f.liger_rms_norm(x, w)
    return (y, *torch.autograd.grad(y, (x, w), torch.ones_like(y)))


@pytest.fixture
def dispatched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that went through Triton's dispatch."""
    names: list[str] = []
    start = direct.start

    def noted(launch: Any, *arrays: Any) -> Any:
        names.append(launch.name)
        return start(launch, *arrays)

    monkeypatch.setattr(direct, "start", noted)
    return names


def test_the_second_call_is_direct(dispatched: list[str]) -> None:
    if not direct.KNOWN:
        pytest.skip(f"triton {triton.__version__} is not run directly")
    x, w = draw(48, 272), draw(272)  # a shape of this test's own
    first = passes(x, w)
    assert dispatched == ["norm_forward", "norm_backward", "sum_partials"]
    for a, b in zip(first, passes(x, w), strict=True):
        assert torch.equal(a, b)
    assert len(dispatched) == 3


def test_other_addresses_find_their_own_kernel(dispatched: list[str]) -> None:
    """What is compiled for multiples of 16 may use wide loads, which fail elsewhere."""
    w = draw(288)
    aligned = [passes(draw(48, 288), w) for _ in range(2)][-1]
    for first in (1, 3, 4):
        dispatched.clear()
        for a, b in zip(passes(draw(48, 288, first=first), w), aligned, strict=True):
            assert torch.equal(a, b)
        assert "norm_forward" in dispatched and "norm_backward" in dispatched


def test_hooks_are_told_of_every_launch() -> None:
    x, w = draw(48, 304), draw(304)
    for _ in range(2):
        passes(x, w)
    seen: list[str] = []
    hooks = triton.knobs.runtime.launch_enter_hook

    def hook(metadata: Any) -> None:
        seen.append(metadata.get()["name"])

    hooks.add(hook)
    try:
        passes(x, w)
    finally:
        hooks.remove(hook)
    passes(x, w)
    assert seen == ["norm_forward", "norm_backward", "sum_partials"]


def test_a_graph_and_a_stream_take_what_is_direct() -> None:
    x, w = draw(48, 320).detach(), draw(320).detach()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            on_stream = f.liger_rms_norm(x, w)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(on_stream, f.liger_rms_norm(x, w))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = f.liger_rms_norm(x, w)
    x.mul_(-3)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, f.liger_rms_norm(x, w))

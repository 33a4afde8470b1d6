"""What `python -m benchmarks host` makes of its measurements, and that its ops and empty functions can be called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import host, host_page
from benchmarks.entry import BACKWARD, FORWARD
from benchmarks.passes import outputs_of
from benchmarks.providers import FUSED, LIGER
from benchmarks.rows import Row, Spread

sys.path.pop()


def row(provider: str, which: str, us: float) -> Row:
    return Row("rms_norm", provider, which, wall_us=Spread(us, us - 1, us + 1, 30))


def test_costs_are_beyond_the_empty_function() -> None:
    rows = [
        row("ours", FORWARD, 20.0),
        row(LIGER, FORWARD, 40.5),
        row(host_page.EMPTY, FORWARD, 10.0),
        row("ours", BACKWARD, 41.0),
        row(FUSED, BACKWARD, 30.0),
        row(host_page.EMPTY, BACKWARD, 25.0),
        Row("rms_norm", LIGER, "", note="absent: not installed"),
    ]
    assert host_page.beyond(rows) == {
        ("rms_norm", FORWARD, "ours"): 10.0,
        ("rms_norm", FORWARD, LIGER): 30.5,
        ("rms_norm", BACKWARD, "ours"): 16.0,
        ("rms_norm", BACKWARD, FUSED): 5.0,
    }
    lines = list(host_page.table(rows))
    forward, backward = (
        next(line for line in lines if f"| {which} |" in line) for which in (FORWARD, BACKWARD)
    )
    assert "| 10.0 | 20.0 (19.0 to 21.0) | 10.0 | 12 | 30.5 | 3.0 |" in forward and "missed" not in forward
    assert "missed: 15 us" in backward
    assert "not installed" in lines[-1]


@pytest.mark.parametrize("name", host.cases())
def test_ours_and_an_empty_function_like_it(name: str) -> None:
    case = host.cases()[name]
    operands = case.operands()
    inputs = [t for t in operands if t is not None and t.requires_grad]
    outputs = outputs_of(case.ours(*operands))
    nothing = host.empty(inputs, outputs)
    assert [t.shape for t in nothing()] == [t.shape for t in outputs]
    for call in (lambda: case.ours(*operands), nothing):
        first, second, *_ = host.backward_of(call, inputs)()
        first()
        gradients = second()  # of a graph of its own
        assert isinstance(gradients, tuple)
        assert [g.shape for g in gradients] == [t.shape for t in inputs]
    assert all(isinstance(t, torch.Tensor) for t in nothing())


def test_a_backward_pass_is_the_first_of_its_graph() -> None:
    passes = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.passes = 0
            return x.clone()

        @staticmethod
        def backward(ctx: Any, incoming: torch.Tensor) -> torch.Tensor:
            ctx.passes += 1
            passes.append(ctx.passes)
            return incoming

    x = torch.zeros(3, requires_grad=True)
    block = host.backward_of(lambda: Counted.apply(x), [x])
    for call in (*block(), *block()):
        call()
    assert passes == [1] * (2 * host.CALLS)

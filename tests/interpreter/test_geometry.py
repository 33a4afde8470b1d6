"""Every geometry of the shipped tables computes what the launch's rule computes, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from liger import geometry, interpret
from liger.device import PRESETS, Device
from liger.launch import Launch, Spec
from liger_torch.backend import DTYPES
from liger_triton.catalogue.tunables import Tunable, tunables

N_ROWS = 37

PARTIAL = {"dw_ptr", "db_ptr", "dq_weight_ptr", "dk_weight_ptr"}

CASES = [
    (device, tunable)
    for name, device in PRESETS.items()
    if geometry.table(name)
    for tunable in tunables(device)
    if tunable.chosen(device) != tunable.rule
]


def draw(spec: Spec, seed: int) -> torch.Tensor:
    """Multiples of 1/8: a sum over tokens of products of three is exact in float32, in whatever order it is taken."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(spec.shape, generator=generator).mul(8).round().div(8).to(DTYPES[spec.dtype])


def run(launch: Launch, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    outputs = [torch.full(s.shape, float("nan"), dtype=DTYPES[s.dtype]) for s in launch.outputs]
    interpret.run(launch, [t.data_ptr() for t in inputs], [t.data_ptr() for t in outputs])
    return outputs


def results(launches: tuple[Launch, ...]) -> list[torch.Tensor]:
    """Of the first launch; partial sums, of which there are as many as programs, added up."""
    launch = launches[0]
    outputs = run(launch, [draw(spec, i) for i, spec in enumerate(launch.inputs)])
    names = launch.kernel.arg_names[len(launch.inputs) + len(launch.integers) :]
    named = [(name, t) for name, t in zip(names, outputs, strict=False) if t.numel()]
    return [t.sum(0) if name in PARTIAL else t for name, t in named]


def same(tunable: Tunable, found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        eps = torch.finfo(a.dtype).eps
        assert (a.double() - b.double()).norm() <= eps * b.double().norm(), tunable.title


@pytest.mark.parametrize(("device", "tunable"), CASES, ids=[tunable.title for _, tunable in CASES])
def test_the_table_computes_what_the_rule_does(device: Device, tunable: Tunable) -> None:
    chosen: Any = tunable.chosen(device)
    for of in (tunable.timed, tunable.variants):
        by_table, by_rule = of(chosen, N_ROWS), of(tunable.rule, N_ROWS)
        for found, expected in zip(by_table[:1], by_rule[:1], strict=True):
            same(tunable, results((found,)), results((expected,)))

"""Memory and kernels of JAX programs, as XLA plans them for an H200 on a machine without one."""

from __future__ import annotations

import copy

import checkout  # noqa: F401
import pytest

from benchmarks.offline import xla, xla_kernels
from benchmarks.offline.section import Figures

needs_the_compiler = pytest.mark.skipif(bool(xla.SECTION.missing()), reason=xla.SECTION.missing())


@pytest.fixture(scope="module")
def found() -> Figures:
    return xla.SECTION.measure([])


@needs_the_compiler
def test_nothing_grew(found: Figures) -> None:
    if reason := xla.SECTION.skipped():
        pytest.skip(reason)
    assert xla.SECTION.complaints(found) == []


@needs_the_compiler
def test_memory_of_the_fused_loss(found: Figures) -> None:
    """With every version of JAX: a chunk's logits (525 MB), and x's gradient to be scaled, beyond inputs and gradients.

    A product that was held beside the weight's gradient would be 1 GB more.
    """
    size = "8192x4096x128256"
    gradients = 2 * (8192 * 4096 + 4096 * 128_256)
    for reduction, limit in (("mean", 0.65e9), ("none", 1.2e9)):
        for layout in ("hv", "vh"):
            line = found[f"linear_cross_entropy {size}, {reduction}, {layout}"]
            # The gradients, the loss, and nothing else comes out; XLA rounds each buffer up.
            outputs = gradients + (4 * 8192 if reduction == "none" else 0)
            assert outputs <= line["output"] <= outputs + 1024
            assert 0.5e9 < line["temporary"] < limit
    for name, line in found.items():
        if name.startswith("linear_"):
            assert line["temporary"] < line["plain_temporary"] / 3, name


@pytest.mark.parametrize("field", ["temporary", "output", "argument", "kernels"])
def test_what_grew_is_named(field: str) -> None:
    held = xla.SECTION.held()
    name = next(n for n in held if n.startswith("linear_cross_entropy"))
    more = copy.deepcopy(held)
    more[name][field] = int(1.01 * more[name][field]) + 1  # type: ignore[index]
    (said,) = xla.SECTION.complaints(more)
    assert said.startswith(f"{name}: {field} grew from")
    more[name]["plain_" + field] *= 2  # type: ignore[index]
    assert len(xla.SECTION.complaints(more)) == 1  # XLA's own is only shown


PROGRAM = """HloModule jit_f, is_scheduled=true

%fused_add (p.1: f32[8], p.2: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  %p.2 = f32[8]{0} parameter(1)
  ROOT %add = f32[8]{0} add(%p.1, %p.2)
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8]{0} get-tuple-element(%state), index=1
  %next = s32[] fusion(%i), kind=kLoop, calls=%fused_add
  %kernel = (f32[8]{0}, f32[0]{0}, /*index=2*/f32[8]{0}) custom-call(%x), custom_call_target="triton_kernel_call"
  %y = f32[8]{0} get-tuple-element(%kernel), index=0
  ROOT %both = (s32[], f32[8]{0}) tuple(%next, %y)
}

%condition (state: (s32[], f32[8])) -> pred[] {
  %state = (s32[], f32[8]{0}) parameter(0)
  ROOT %less = pred[] fusion(%state), kind=kLoop, calls=%fused_add
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = (f32[8]{0}, f32[8]{0}) copy-start(%a)
  %copied = f32[8]{0} copy-done(%start)
  %tuple = (s32[], f32[8]{0}) tuple(%zero, %copied)
  %loop = (s32[], f32[8]{0}) while(%tuple), condition=%condition, body=%bodyTRIPS
  ROOT %out = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


def test_kernels_are_counted() -> None:
    assert xla_kernels.count(PROGRAM.replace("TRIPS", "")) == 4
    trips = ', backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0","step":"1"}}'
    assert xla_kernels.count(PROGRAM.replace("TRIPS", trips)) == 1 + 5 * 3
    with pytest.raises(ValueError, match="no ENTRY computation"):
        xla_kernels.count("func.func @main() { }")

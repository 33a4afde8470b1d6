"""The launches of the catalogue compile without spills and by 16 bytes where rows allow.

All of them for the target that is measured, and each variant, at one of its sizes, for one more; the figures that are
held are of every launch on every target. With the version of Triton that they are held for, no multiprocessor holds
fewer of a launch's warps than before. `python -m benchmarks offline compiled` compares all of them, which takes a core
a quarter of an hour.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import re
import zlib
from typing import Any

import checkout  # noqa: F401
import pytest
import triton

import liger_triton
from benchmarks.offline import compiled
from liger.aot import Report, compile_launch
from liger.device import PRESETS, Device
from liger.launch import DTYPE_BYTES, Launch
from liger.memory_access import widths
from liger_triton.catalogue import Entry, catalogue, find
from liger_triton.ops import OPS

HELD = compiled.SECTION.held()
NOT_COMPARED = compiled.SECTION.skipped()

MEASURED = "sm_90"
"""The target that all launches are compiled for."""

EVERY = [(target, entry) for target, device in PRESETS.items() for entry in catalogue(device)]


def variant(launch: Launch) -> tuple[Any, ...]:
    """The launch but for its sizes: kernel, dtypes, options, and which runtime integers need 64 bits."""
    return (
        launch.name,
        *(spec.dtype for spec in (*launch.inputs, *launch.outputs)),
        *(
            (name, value if isinstance(value, str) else bool(value))
            for name, value in launch.constants
            if isinstance(value, bool | float | str)
        ),
        *(n >= 2**31 for n in launch.integers),
    )


def dealt_out() -> list[tuple[str, Entry]]:
    """Each launch for the measured target, and one of each variant for one of the others, dealt out by kernel."""
    others = [target for target in PRESETS if target != MEASURED]
    chosen = [(target, entry) for target, entry in EVERY if target == MEASURED]
    for turn, target in enumerate(others):
        kernels: dict[str, dict[tuple[Any, ...], Entry]] = {}
        # In an order that has nothing to do with that of sizes, dtypes and options.
        for entry in sorted(catalogue(PRESETS[target]), key=lambda entry: zlib.crc32(entry.name.encode())):
            kernels.setdefault(entry.launch.name, {}).setdefault(variant(entry.launch), entry)
        for variants in kernels.values():
            entries = list(variants.values())
            chosen += [
                (target, entry)
                for entry in (entries[turn :: len(others)] if len(entries) >= len(others) else entries)
            ]
    return chosen


CASES = dealt_out()

NUMBERS_PER_ROW = {
    "cross_entropy_denominators",
    "cross_entropy_shift",
    "cross_entropy_totals",
    "cross_entropy_whole",
    "logprobs_shift",
    "logprobs_whole",
}
"""Kernels over a few numbers per row. The rows' count is known at run time only, so loads stay narrow."""

SINGLE_ELEMENTS = {"logits_ptr": 1, "student_ptr": 1}
"""Loads of one element beside those of whole rows: the label's logit."""

SINGLE_RESULTS = {("cross_entropy_forward", "gradient_ptr")}
"""Stores of one element beside those of whole rows: the label's gradient."""

ONE_PER_THREAD = {("sum_partials", "first_out_ptr"), ("sum_partials", "second_out_ptr")}
"""Results of a tile that are no more than its threads."""

ROW_BY_ROW = {("embedding_chunk_sums", "sums_ptr"), ("embedding_backward", "dw_ptr")}
"""Results that a program writes one row at a time: a row of fewer than 1024 elements leaves threads without 16 bytes."""

FEWER_HEADS = {
    (kernel, f"{side}_{which}"): ("TOKENS", f"{side.upper()}_TILE", width)
    for kernel, width in (("rope_rotate", "HALF"), ("qk_norm_rope_forward", "PAIRS"))
    for side in ("q", "k")
    for which in ("ptr", "out_ptr")
}
"""A program has some heads of a few tokens, whose pairs may be too few for 16 bytes a thread: k's, which has fewer heads than q,
or q's where much of a head is only copied. Measured to be faster than more tokens, or fewer threads. By these constants
(pairs of a tile), a thread's part is read and written at once then."""

FROM_MATRIX_UNITS = {("int2_matmul", "c_ptr")}
"""Results of matrix products, which Triton stores as AMD's matrix units leave them: 4 bytes per thread, side by side."""


def accessed(launch: Launch) -> tuple[set[str], set[str]]:
    """Names of the arrays that are read and of those that are written."""
    names = launch.kernel.arg_names
    first_output = len(launch.inputs) + len(launch.integers)
    read = {name for name, spec in zip(names, launch.inputs, strict=False) if not spec.unread}
    written = {name for name, spec in zip(names[first_output:], launch.outputs, strict=False) if spec.size}
    return read, written


def narrow(launch: Launch, report: Report, device: Device) -> list[str]:
    """Arrays that ought to be accessed by 16 bytes and are not.

    They are those whose rows are whole multiples of 16 bytes and which make up a twentieth of the traffic or more;
    labels, per-row statistics and weights that stay in the cache do not.
    """
    names = launch.kernel.arg_names
    first_output = len(launch.inputs) + len(launch.integers)
    arrays = [
        *zip(names, launch.inputs, [report.loads] * len(launch.inputs), strict=False),
        *zip(names[first_output:], launch.outputs, [report.stores] * len(launch.outputs), strict=False),
    ]
    found = []
    for name, spec, table in arrays:
        row_bytes = spec.shape[-1] * DTYPE_BYTES[spec.dtype]
        if row_bytes % 16 or spec.nbytes * spec.passes < launch.traffic / 20 or spec.resident:
            continue
        if (launch.name, name) in ONE_PER_THREAD:
            continue
        if (launch.name, name) in FEWER_HEADS:
            tile = math.prod(dict(launch.constants)[side] for side in FEWER_HEADS[launch.name, name])
            of_thread = tile * DTYPE_BYTES[spec.dtype] // (launch.num_warps * device.warp_size)
            if min(table[name], default=0) >= max(of_thread, 4):
                continue
        if (launch.name, name) in FROM_MATRIX_UNITS and device.vendor == "hip":
            continue
        if (launch.name, name) in ROW_BY_ROW and spec.shape[-1] < 1024:
            continue
        n_narrow = sum(n for width, n in table[name].items() if width < 16)
        single = (
            SINGLE_ELEMENTS.get(name, 0) if table is report.loads else (launch.name, name) in SINGLE_RESULTS
        )
        if n_narrow > single:
            found.append(f"{name}: {dict(table[name])}")
    return found


@pytest.mark.parametrize(
    ("target", "entry"), CASES, ids=[f"{target}-{entry.name}" for target, entry in CASES]
)
def test_compiles_well(target: str, entry: Entry) -> None:
    launch = entry.launch
    report = compile_launch(launch, PRESETS[target])
    assert report.spill_bytes == 0
    if not NOT_COMPARED:
        assert target in HELD.get(entry.name, {}), "new; python -m benchmarks offline compiled NAME --write"
        found = {target: compiled.figures(launch, report)}
        assert compiled.complain(found, {target: HELD[entry.name][target]}) == []
    assert report.shared_bytes <= PRESETS[target].shared_bytes
    read, written = accessed(launch)
    assert set(report.loads) == read
    assert set(report.stores) == written
    if launch.name not in NUMBERS_PER_ROW:
        assert not narrow(launch, report, PRESETS[target])


INTEGER_PRODUCTS = {
    "sm_80": r"mma\.sync.*\.s32\.s8\.s8\.s32",
    "sm_90": r"wgmma\.mma_async.*\.s32\.s8\.s8",
    "sm_100": r"mma\.sync.*\.s32\.s8\.s8\.s32",
    "gfx942": r"v_mfma_i32_.*_i8",
}


@pytest.mark.parametrize(
    ("target", "entry"),
    [(target, entry) for target, entry in CASES if entry.launch.name == "int2_matmul"],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_two_bit_weights_meet_the_integer_matrix_units(target: str, entry: Entry) -> None:
    """And no others; their bytes are loaded by 8 or more where rows allow."""
    report = compile_launch(entry.launch, PRESETS[target])
    assert report.products
    assert all(re.fullmatch(INTEGER_PRODUCTS[target], name) for name in report.products)
    n_packed, n_cols = entry.launch.inputs[1].shape
    if n_packed % 16 == n_cols % 16 == 0 and n_packed * n_cols > 10_000:
        assert min(report.loads["packed_ptr"]) >= 8


def test_all_of_the_catalogue_is_held_and_nothing_spills() -> None:
    if NOT_COMPARED:
        pytest.skip(NOT_COMPARED)
    held = {(target, name): line[target] for name, line in HELD.items() for target in line}
    assert held.keys() == {(target, entry.name) for target, entry in EVERY}, (
        "python -m benchmarks offline compiled NAME --write"
    )
    assert not [name for name, (*_, spilt) in held.items() if spilt]


def test_every_kernel_is_compiled_for_every_target() -> None:
    assert {(t, e.launch.name) for t, e in CASES} == {(t, e.launch.name) for t, e in EVERY}


def test_a_worse_launch_is_found() -> None:
    """The comparison can fail: with half the warps, each of twice the work, registers no longer suffice."""
    entry = find("rms_norm-8192-bf16/norm_backward", PRESETS["sm_90"])
    fewer = dataclasses.replace(entry.launch, num_warps=entry.launch.num_warps // 2)
    held, found = (
        {"sm_90": compiled.figures(launch, compile_launch(launch, PRESETS["sm_90"]))}
        for launch in (entry.launch, fewer)
    )
    assert compiled.complain(held, held) == []
    assert compiled.complain(found, held)


def test_odd_rows_are_found_narrow() -> None:
    """The check above can fail: rows of 1001 elements cannot be read by 16 bytes, and it sees that they are not."""
    entry = find("rms_norm-1001-bf16/norm_forward", PRESETS["sm_90"])
    report = compile_launch(entry.launch, PRESETS["sm_90"])
    assert max(report.loads["x_ptr"]) == 2
    assert max(report.stores["y_ptr"]) == 2


def test_spills_are_seen() -> None:
    """And spills are found where there are some: a wide row held by too few warps."""
    for target, warps in (("sm_90", 4), ("gfx942", 2)):
        entry = find("rms_norm-8192-fp32/norm_backward", PRESETS[target])
        report = compile_launch(dataclasses.replace(entry.launch, num_warps=warps), PRESETS[target])
        assert report.spill_bytes > 0
        assert report.stack_bytes > 0


def test_the_catalogue_is_complete() -> None:
    """It launches every kernel of liger_triton (what takes a pointer and is no one's helper), and calls every op."""
    found = [
        name
        for module in pkgutil.iter_modules(liger_triton.__path__)
        for name, value in vars(importlib.import_module(f"liger_triton.{module.name}")).items()
        if isinstance(value, triton.JITFunction)
        and name[0] != "_"
        and value.arg_names
        and value.arg_names[0].endswith("_ptr")
    ]
    # What several files have is a helper that they share.
    kernels = {name for name in found if found.count(name) == 1}
    for device in PRESETS.values():
        entries = catalogue(device)
        assert {entry.launch.name for entry in entries} == kernels
        assert {entry.name.split("-")[0] for entry in entries} == {op.name for op in OPS}
        assert len({entry.name for entry in entries}) == len(entries)
        assert any(max(entry.extents) > 2**31 for entry in entries)


def test_find_names_what_is_missing() -> None:
    with pytest.raises(KeyError, match="'no-such-launch'"):
        find("no-such-launch", PRESETS["sm_90"])


def test_compile_refuses_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalogue(PRESETS["sm_90"])[0]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match=r"norm_forward cannot be compiled: .* TRITON_INTERPRET=1"):
        compile_launch(entry.launch, PRESETS["sm_90"])


IR = """
define ptx_kernel void @copy(ptr addrspace(1) %0, ptr addrspace(1) %1, i32 %2, ptr addrspace(1) nofree %3) local_unnamed_addr #0 {
  %5 = getelementptr [2 x i8], ptr addrspace(1) %0, i64 8
  br label %6
6:
  %7 = phi ptr addrspace(1) [ %9, %6 ], [ %5, %4 ]
  %8 = call { i32, i32 } asm sideeffect "mov.u32 $0, 0;\\0A\\09@$3 ld.global.v2.b32 { $0, $1 }, [ $2 + 0 ];", "=r,=r,l,b"(ptr addrspace(1) %7, i1 true)
  %9 = getelementptr i8, ptr addrspace(1) %7, i64 %8
  call void @llvm.amdgcn.raw.ptr.buffer.store.v4i32(<4 x i32> zeroinitializer, ptr addrspace(1) %1, i32 0, i32 0, i32 0)
  store <1 x float> zeroinitializer, ptr addrspace(3) @shared
  LINE
}
"""


@pytest.mark.parametrize(
    ("line", "loads", "stores"),
    [
        ("", {"x": {8: 1}}, {"y": {16: 1}}),
        ("%10 = load <8 x bfloat>, ptr addrspace(1) %9, align 16", {"x": {8: 1, 16: 1}}, {"y": {16: 1}}),
        ("%10 = load i16, ptr addrspace(4) %1, align 2", {"x": {8: 1}, "y": {2: 1}}, {"y": {16: 1}}),
        ("store i64 %8, ptr addrspace(1) %7", {"x": {8: 1}}, {"x": {8: 1}, "y": {16: 1}}),
        (
            'call void asm sideeffect "cp.async.cg.shared.global [ $0 + 0 ], [ $1 + 0 ], 0x10, $2;", "r,l,r"'
            "(ptr addrspace(3) %8, ptr addrspace(1) %9, i32 16)",
            {"x": {8: 1, 16: 1}},
            {"y": {16: 1}},
        ),
    ],
)
def test_accesses_are_traced_to_their_arrays(
    line: str, loads: dict[str, dict[int, int]], stores: dict[str, dict[int, int]]
) -> None:
    assert widths(IR.replace("LINE", line), ["x", "y", "n"]) == (loads, stores)


def test_an_unknown_access_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Unknown access to x: call void @surprise"):
        widths(IR.replace("LINE", "call void @surprise(ptr addrspace(1) %9)"), ["x", "y", "n"])

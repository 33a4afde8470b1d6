"""Compile a `Launch` for a named GPU on a machine that has none, and report what it uses.

What is compiled holds for both frontends: pointers are 16-byte aligned, an integer that is 1 is a constant, and no
other property of an integer is assumed. jax-triton assumes just that; Triton's own launcher may assume more.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from liger import interpret
from liger.device import Device
from liger.launch import TRITON_DTYPE, Launch
from liger.memory_access import Widths, widths

_PRODUCT = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_s?mfmac?)[\w.:]*")


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What a compiled launch uses.

    Attributes:
        registers: 32-bit registers of a thread.
        spill_bytes: bytes of a thread's registers that went to memory for lack of room.
        stack_bytes: local memory of a thread, spills included.
        shared_bytes: shared memory of a program.
        loads: widths of the loads from each input array.
        stores: widths of the stores to each output array.
        code_bytes: size of the assembly text (PTX or GCN).
        products: names of the instructions that multiply matrices.
    """

    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    loads: Widths
    stores: Widths
    code_bytes: int
    products: frozenset[str]


def compile_launch(launch: Launch, device: Device) -> Report:
    """Compile the launch for the device, through Triton's disk cache.

    Raises:
        RuntimeError: this process interprets kernels instead of compiling them.
    """
    if interpret.enabled():
        raise RuntimeError(
            f"{launch.name} cannot be compiled: this process was started with TRITON_INTERPRET=1. "
            "Start one without it."
        )
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature: dict[str, str] = {}
    constants: dict[str, Any] = dict(launch.constants)
    names = launch.kernel.arg_names
    types = [
        *("*" + TRITON_DTYPE[spec.dtype] for spec in launch.inputs),
        *("i32" if -(2**31) <= n < 2**31 else "i64" for n in launch.integers),
        *("*" + TRITON_DTYPE[spec.dtype] for spec in launch.outputs),
    ]
    values = [*(None for _ in launch.inputs), *launch.integers, *(None for _ in launch.outputs)]
    for name, kind, value in zip(names, types, values, strict=False):
        if value == 1:
            constants[name] = 1
        signature[name] = "constexpr" if value == 1 else kind
    runtime = [name for name, kind in signature.items() if kind != "constexpr"]
    signature |= dict.fromkeys(names[len(types) :], "constexpr")
    source = ASTSource(
        fn=launch.kernel,
        signature=signature,
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types) if kind.startswith("*")},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget(device.vendor, device.arch, device.warp_size),
        options={
            "num_warps": launch.num_warps,
            "num_stages": launch.num_stages,
            # Said, since Triton's default is about to change.
            "enable_fp_fusion": True,
        },
    )
    text = compiled.asm["ptx" if device.vendor == "cuda" else "amdgcn"]
    resources = _nvidia_resources if device.vendor == "cuda" else _amd_resources
    registers, spill_bytes, stack_bytes = resources(compiled.asm, device)
    loads, stores = widths(compiled.asm["llir"], runtime)
    return Report(
        registers=registers,
        spill_bytes=spill_bytes,
        stack_bytes=stack_bytes,
        shared_bytes=compiled.metadata.shared,
        loads=loads,
        stores=stores,
        code_bytes=len(text),
        products=frozenset(_PRODUCT.findall(text)),
    )


def _amd_resources(asm: Any, device: Device) -> tuple[int, int, int]:
    """(registers, spill bytes, stack bytes), from the metadata at the end of the assembly."""
    value = {
        name: int(re.findall(rf"\.{name}: +(\d+)", asm["amdgcn"])[-1])
        for name in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size")
    }
    spilled = 4 * (value["vgpr_spill_count"] + value["sgpr_spill_count"])
    return value["vgpr_count"], spilled, value["private_segment_fixed_size"]


def _nvidia_resources(asm: Any, device: Device) -> tuple[int, int, int]:
    """(registers, spill bytes, stack bytes), from the binary; spills, of which it says nothing, from ptxas."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(asm["cubin"])
        usage = _run(_tool("cuobjdump"), "-res-usage", str(cubin))
        registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK"))
        if stack == 0:
            return registers, 0, 0
        ptx = Path(folder, "kernel.ptx")
        ptx.write_text(asm["ptx"])
        target = re.findall(r"^\.target (\w+)", asm["ptx"], re.MULTILINE)[0]
        log = _run(_assembler(device), "-v", f"--gpu-name={target}", str(ptx), "-o", str(cubin))
        return registers, int(re.findall(r"(\d+) bytes spill stores", log)[-1]), stack


@functools.cache
def _tool(name: str) -> str:
    from triton import knobs

    return str(getattr(knobs.nvidia, name).path)


def _assembler(device: Device) -> str:
    from triton.backends.nvidia.compiler import get_ptxas

    return str(get_ptxas(device.arch).path)


def _run(*command: str) -> str:
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return result.stdout + result.stderr

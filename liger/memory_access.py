"""How wide a compiled kernel's accesses to each of its arrays are.

Read from the LLVM IR that Triton hands to the assembler: the last form of a kernel in which every address can be
traced to the pointer argument it came from. On NVIDIA GPUs the accesses already are inline assembly there, on AMD
GPUs they are intrinsics that become one instruction each.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

Widths = Mapping[str, Mapping[int, int]]
"""For each array, the number of instructions by width in bytes."""

_DEFINITION = re.compile(r"^define .*?\w+_kernel void @\w+\((.*)\) ")
_ASSIGNMENT = re.compile(r"^\s*(%[\w.]+) = (.*)$")
_REGISTER = re.compile(r"%[\w.]+")
_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global[^;]*?, (0x[0-9a-f]+)")
_INLINE = re.compile(r"(ld|st)\.global[.:\w]*?(?:\.v(\d))?\.[busf](\d+) ")
_INTRINSIC_LOAD = re.compile(r"\bcall (\S+|<[^>]*>) @llvm\.(?:amdgcn\.[\w.]*buffer|masked)\.load\b")
_INTRINSIC_STORE = re.compile(r"@llvm\.(?:amdgcn\.[\w.]*buffer|masked)\.store[\w.]*\((<[^>]*>|\S+)")
_LOAD = re.compile(r"\bload (?:volatile )?(<[^>]*>|\w+), ptr")
_STORE = re.compile(r"\bstore (?:volatile )?(<[^>]*>|\w+) ")
_TYPE = re.compile(r"(?:<(\d+) x )?(?:i(\d+)|(half|bfloat)|(float)|(double))>?$")


def widths(llvm_ir: str, parameters: Sequence[str]) -> tuple[Widths, Widths]:
    """(loads, stores) of a kernel.

    Args:
        llvm_ir: the module, with one kernel.
        parameters: names of the kernel's runtime parameters, in order; the compiler may have appended others.

    Raises:
        RuntimeError: an instruction touches an array in a way that is none of the loads and stores known here.
    """
    lines = [line.split(", !dbg")[0] for line in llvm_ir.splitlines()]
    signature = next(match[1] for line in lines if (match := _DEFINITION.match(line)))
    pointers = [argument for argument in signature.split(", ") if argument.startswith("ptr ")]
    registers = [re.findall(r"%\w+$", argument)[0] for argument in signature.split(", ")]
    origin = {
        register: name
        for register, name, argument in zip(registers, parameters, signature.split(", "), strict=False)
        if argument in pointers
    }
    body = []
    for line in lines:
        if "%" in line and not line.startswith(("define", "declare", ";")):
            assignment = _ASSIGNMENT.match(line)
            result, operation = (assignment[1], assignment[2]) if assignment else (None, line)
            body.append((line, result, _REGISTER.findall(operation), _access(line)))
    # A loop's phi names a register that is defined further down, so one sweep may not be enough.
    known = -1
    while known != len(origin):
        known = len(origin)
        for _, result, operands, access in body:
            if result and result not in origin and access is None:
                arrays = [origin[r] for r in operands if r in origin]
                if arrays:
                    origin[result] = arrays[0]
    loads: dict[str, Counter[int]] = {}
    stores: dict[str, Counter[int]] = {}
    for line, result, operands, access in body:
        arrays = [origin[r] for r in operands if r in origin]
        if arrays and access:
            kind, width = access
            (loads if kind == "load" else stores).setdefault(arrays[-1], Counter())[width] += 1
        elif arrays and not result:
            raise RuntimeError(f"Unknown access to {arrays[0]}: {line.strip()}")
    return loads, stores


def _access(line: str) -> tuple[str, int] | None:
    """Whether the instruction loads or stores, and how many bytes per thread; None if it does neither."""
    if match := _COPY.search(line):
        return "load", int(match[1], 16)
    if match := _INLINE.search(line):
        return "load" if match[1] == "ld" else "store", int(match[2] or 1) * int(match[3]) // 8
    if match := _INTRINSIC_LOAD.search(line) or _LOAD.search(line):
        return "load", _bytes(match[1])
    if match := _INTRINSIC_STORE.search(line) or _STORE.search(line):
        return "store", _bytes(match[1])
    return None


def _bytes(llvm_type: str) -> int:
    match = _TYPE.match(llvm_type)
    if match is None:
        raise RuntimeError(f"Unknown type of a load or store: {llvm_type}")
    count, bits, half, single, _ = match.groups()
    return int(count or 1) * (max(int(bits) // 8, 1) if bits else 2 if half else 4 if single else 8)

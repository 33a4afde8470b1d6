"""Repairs to Triton's interpreter, checked on Triton 3.6 to 3.9.

- It computes on the raw bits of bfloat16, and truncates when it casts to it; its maintainers call bfloat16
  unsupported. Here bfloat16 operands are widened to float32 before an operation, and results are rounded to nearest,
  ties to even, as on a GPU.
- Triton 3.6 turns a one-element array into an index by `int(array)`, which numpy 2.4 refuses.
- The result of a comparison is marked with the dtype of what was compared. Spread from a scalar to a block it becomes
  integers, which Triton 3.9 refuses as a mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

_COMPARISONS: dict[str, Any] = {
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "EQ": np.equal,
    "NE": np.not_equal,
}


def apply() -> None:
    """Install the repairs; called by `liger.interpret` alone, which does so once."""
    _repair_index()
    _repair_comparisons()
    _repair_bfloat16()


def widen(bits: np.ndarray) -> np.ndarray:
    """Bfloat16 bits (uint16) as float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """float32 as bfloat16 bits (uint16), to nearest, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + ((bits >> 16) & 1) + np.uint32(0x7FFF)) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16).reshape(np.shape(values))


def _repair_index() -> None:
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor
    if "squeeze" in inspect.getsource(original):
        return

    def patched(tensor: Any, *scope: Any) -> None:
        original(tensor, *scope)

        def index(self: Any) -> int:
            return int(self.handle.data.squeeze())

        if scope:
            scope[0].set_attr(tensor, "__index__", index)
        else:
            tensor.__index__ = index

    interpreter._patch_lang_tensor = patched


def _repair_comparisons() -> None:
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder as Builder
    from triton.runtime.interpreter import TensorHandle as Handle

    original = Builder.binary_op

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        result = original(self, lhs, rhs, op)
        return Handle(result.data, tl.int1) if result.data.dtype == np.bool_ else result

    Builder.binary_op = binary_op


def _repair_bfloat16() -> None:
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder as Builder
    from triton.runtime.interpreter import TensorHandle as Handle

    def is_bfloat16(handle: Any) -> bool:
        return isinstance(handle, Handle) and handle.dtype.scalar == tl.bfloat16

    def wide(handle: Any) -> Any:
        return Handle(widen(handle.data), tl.float32) if is_bfloat16(handle) else handle

    def rounded(handle: Any) -> Any:
        return Handle(narrow(handle.data), tl.bfloat16)

    binary, unary, cast, dot = Builder.binary_op, Builder.unary_op, Builder.cast_impl, Builder.create_dot

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if is_bfloat16(lhs) and is_bfloat16(rhs):
            return rounded(binary(self, wide(lhs), wide(rhs), op))
        return binary(self, lhs, rhs, op)

    def unary_op(self: Any, arg: Any, op: Any) -> Any:
        return rounded(unary(self, wide(arg), op)) if is_bfloat16(arg) else unary(self, arg, op)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if is_bfloat16(source):
            if target.scalar == tl.bfloat16:
                return source
            return wide(source) if target.scalar == tl.float32 else cast(self, wide(source), target)
        if target.scalar == tl.bfloat16:
            return Handle(narrow(source.data.astype(np.float32)), tl.bfloat16)
        return cast(self, source, target)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, wide(a), wide(b), *rest)

    Builder.binary_op, Builder.unary_op = binary_op, unary_op
    Builder.cast_impl, Builder.create_dot = cast_impl, create_dot
    for name in ("si_to_fp", "ui_to_fp", "fp_to_si", "fp_to_ui", "fp_ext", "fp_trunc"):
        setattr(Builder, f"create_{name}", lambda self, source, target: self.cast_impl(source, target))
    if not hasattr(Builder, "get_bf16"):
        Builder.get_bf16 = lambda self, value: rounded(Handle(np.array([value], np.float32), tl.float32))

    def comparison(original: Callable[..., Any], op: Any) -> Callable[..., Any]:
        def compare(self: Any, lhs: Any, rhs: Any) -> Any:
            if is_bfloat16(lhs):
                return Handle(op(widen(lhs.data), widen(rhs.data)), tl.int1)
            return original(self, lhs, rhs)

        return compare

    for suffix, op in _COMPARISONS.items():
        for order in ("O", "U"):
            name = f"create_fcmp{order}{suffix}"
            if hasattr(Builder, name):
                setattr(Builder, name, comparison(getattr(Builder, name), op))

"""What Triton's interpreter does anew at every operation, done once; checked on Triton 3.6 to 3.9.

A kernel's results are the same to the bit. Most of the time that the interpreter takes is not numpy's: it looks through
`triton.language` for what is to be replaced, at every launch and at every call of a device function, and spells out the
type of every value. Interpreted kernels run in about a quarter of the time without that.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any


def apply() -> None:
    """Replace what is slow; called by `liger.interpret` alone, which does so once."""
    _patch_the_language_once()
    _look_numpy_types_up()
    _describe_types_once()
    _leave_equal_types_as_they_are()
    _make_constants_once()
    _call_builtins_directly()
    _leave_unread_checks_out()


def _patch_the_language_once() -> None:
    """Modules of the language that are patched stay so, as Triton leaves those that a device function sees."""
    import triton.language as tl
    from triton.runtime import interpreter

    original = interpreter._patch_lang
    patched: set[str] = set()
    seen: dict[Any, frozenset[str]] = {}

    class NothingToRestore:
        def restore(self) -> None:
            pass

    def patch(function: Any) -> Any:
        modules = seen.get(function)
        if modules is None:
            found = (value for value in function.__globals__.values() if inspect.ismodule(value))
            modules = seen[function] = frozenset(m.__name__ for m in found if m in (tl, tl.core))
        if not modules or not modules <= patched:
            original(function)  # refuses a function that does not see the language
            patched.update(modules)
        return NothingToRestore()

    interpreter._patch_lang = patch


def _look_numpy_types_up() -> None:
    """By a type's name, which says all that matters here; the original makes a table of all types at every call."""
    from triton.runtime import interpreter

    original = interpreter._get_np_dtype
    known: dict[str, Any] = {}

    def numpy_type(dtype: Any) -> Any:
        found = known.get(dtype.name)
        if found is None:
            found = known[dtype.name] = original(dtype)
        return found

    interpreter._get_np_dtype = numpy_type


def _describe_types_once() -> None:
    """The shape of a block and its name, as constants of the language: once for each shape and element type."""
    from triton.language import core

    describe_block, describe_tensor = core.block_type.__init__, core.tensor.__init__
    blocks: dict[Any, dict[str, Any]] = {}
    tensors: dict[str, dict[str, Any]] = {}

    def describe_block_once(self: Any, element_ty: Any, shape: Any) -> None:
        key = element_ty.name, *[getattr(extent, "value", extent) for extent in shape]
        if key not in blocks:
            describe_block(self, element_ty, shape)
            blocks[key] = vars(self).copy()
        vars(self).update(blocks[key], element_ty=element_ty)

    def describe_tensor_once(self: Any, handle: Any, type: Any) -> None:
        if type.name not in tensors:
            describe_tensor(self, handle, type)
            tensors[type.name] = vars(self).copy()
        vars(self).update(tensors[type.name], handle=handle, type=type, dtype=type.scalar)

    core.block_type.__init__, core.tensor.__init__ = describe_block_once, describe_tensor_once


def _leave_equal_types_as_they_are() -> None:
    """Operands that are alike need no promotion and no broadcast, and a type is equal to itself."""
    from triton.language import core
    from triton.language.semantic import TritonSemantic

    promote, broadcast = TritonSemantic.binary_op_type_checking_impl, TritonSemantic.broadcast_impl_value
    equal = core.dtype.__eq__
    # Quotients of narrower floats are wider.
    kept = {"int1", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "fp32", "fp64"}
    alike: dict[tuple[str, str], bool] = {}

    def promote_others(self: Any, lhs: Any, rhs: Any, *flags: Any, **named: Any) -> Any:
        if (
            isinstance(lhs, core.tensor)
            and isinstance(rhs, core.tensor)
            and lhs.type.name == rhs.type.name
            and lhs.dtype.name in kept
        ):
            return lhs, rhs
        return promote(self, lhs, rhs, *flags, **named)

    def broadcast_others(self: Any, lhs: Any, rhs: Any) -> Any:
        key = lhs.type.name, rhs.type.name
        if key not in alike:
            shapes = [list(operand.type.shape) if operand.type.is_block() else None for operand in (lhs, rhs)]
            alike[key] = shapes[0] == shapes[1]
        return (lhs, rhs) if alike[key] else broadcast(self, lhs, rhs)

    TritonSemantic.binary_op_type_checking_impl = promote_others
    TritonSemantic.broadcast_impl_value = broadcast_others
    core.dtype.__eq__ = lambda self, other: self is other or equal(self, other)


def _make_constants_once() -> None:
    """A number as a value of a type: nothing is ever written into it."""
    from triton.language.semantic import TritonSemantic

    original = TritonSemantic.scalar_constant
    known: dict[Any, Any] = {}

    def constant(self: Any, value: Any, dtype: Any) -> Any:
        if type(value) not in (int, float, bool) or value != value:  # NaN would be another key each time
            return original(self, value, dtype)
        key = type(value), value, dtype.name
        if key not in known:
            known[key] = original(self, value, dtype)
        return known[key]

    TritonSemantic.scalar_constant = constant


def _call_builtins_directly() -> None:
    """Without a look at whether they are called by a kernel, which they are."""
    from triton.runtime import interpreter

    def patch(owner: Any, name: str, member: Any, builder: Any, *scope: Any) -> None:
        function = inspect.unwrap(member)
        semantic = interpreter.interpreter_semantic

        def call(*arguments: Any, **named: Any) -> Any:
            named["_semantic"] = semantic
            return function(*arguments, **named)

        (scope[0].set_attr if scope else setattr)(owner, name, call)

    interpreter._patch_attr = patch


def _leave_unread_checks_out() -> None:
    """Sums and products of integers are computed a second time in int64, for a check that only `debug` looks at."""
    from triton.runtime.interpreter import interpreter_builder

    options = interpreter_builder.options
    interpreter_builder.options = dataclasses.replace(
        options, sanitize_overflow=options.sanitize_overflow and options.debug
    )

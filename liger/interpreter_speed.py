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


def _leave_unread_checks_out() -> None:
    """Sums and products of integers are computed a second time in int64, for a check that only `debug` looks at."""
    from triton.runtime.interpreter import interpreter_builder

    options = interpreter_builder.options
    interpreter_builder.options = dataclasses.replace(
        options, sanitize_overflow=options.sanitize_overflow and options.debug
    )

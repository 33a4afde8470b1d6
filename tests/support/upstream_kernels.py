"""liger-kernel's Triton kernels in the interpreter, which lacks what they need: floats as arguments, CUDA's libdevice."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter


@triton.jit
def rsqrt(x):  # type: ignore[no-untyped-def]
    return tl.rsqrt(x)


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@contextlib.contextmanager
def upstream() -> Iterator[ModuleType]:
    """`liger_kernel.transformers.functional`, its kernels fit for the interpreter inside the context.

    Raises:
        ImportError: liger-kernel is not installed.
    """
    functional = importlib.import_module("liger_kernel.transformers.functional")
    own = interpreter._implicit_cvt

    def converted(argument: Any) -> Any:
        if not isinstance(argument, float):
            return own(argument)
        return tl.tensor(interpreter.TensorHandle(np.array([argument], np.float32), tl.float32), tl.float32)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(interpreter, "_implicit_cvt", converted))
        for name, module in list(sys.modules.items()):
            for function in (rsqrt, tanh) if name.startswith("liger_kernel.ops") else ():
                if hasattr(module, function.__name__):
                    stack.enter_context(mock.patch.object(module, function.__name__, function))
        yield functional

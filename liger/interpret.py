"""Run a `Launch` in Triton's interpreter on host memory, without torch or jax.

Triton decides when a kernel is decorated whether it will be interpreted: `TRITON_INTERPRET=1` must be set before
the kernels are imported, and holds for the whole process.

The interpreter keeps its state (the program id, the patched `triton.language`) in module globals, so two kernels at
once would corrupt each other: runs are serialised by a lock.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from liger import interpreter_repairs, interpreter_speed, traffic
from liger.launch import TRITON_DTYPE, Launch, Spec

_LOCK = threading.Lock()


def enabled() -> bool:
    """Whether this process interprets kernels instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@dataclasses.dataclass(frozen=True, slots=True)
class _Pointer:
    """What the interpreter asks of an array argument: its address and its element type."""

    address: int
    dtype: str

    def data_ptr(self) -> int:
        return self.address


def run(launch: Launch, inputs: Sequence[int], outputs: Sequence[int]) -> None:
    """Execute the launch.

    Args:
        launch: the kernel call.
        inputs: host addresses of the inputs' first elements.
        outputs: host addresses of the outputs' first elements.
    """
    if launch.is_empty:
        return
    arguments = [
        *_pointers(inputs, launch.inputs),
        *launch.integers,
        *_pointers(outputs, launch.outputs),
    ]
    kernel = launch.kernel
    if not hasattr(kernel, "rewrite"):
        raise RuntimeError(
            f"{launch.name} was imported without TRITON_INTERPRET=1; set it before the process starts to run "
            "kernels in the interpreter."
        )
    with _LOCK:
        prepare()
        executor = _executor_class()(kernel.rewrite(), kernel.arg_names, launch.grid)
        with traffic.observed(launch, inputs):
            executor(*arguments, **dict(launch.constants))


@functools.cache
def prepare() -> None:
    """Repair Triton's interpreter, and replace what is slow in it; once per process."""
    interpreter_repairs.apply()
    interpreter_speed.apply()


def _pointers(addresses: Sequence[int], specs: Sequence[Spec]) -> Iterator[_Pointer]:
    for address, spec in zip(addresses, specs, strict=True):
        # Triton's interpreter spells unsigned and boolean types like the compiler does.
        yield _Pointer(address, TRITON_DTYPE[spec.dtype])


@functools.cache
def _executor_class() -> type:
    from triton.runtime import interpreter

    class HostExecutor(interpreter.GridExecutor):
        """The interpreter's loop over the grid; the base class copies arguments with torch, ours are on the host."""

        def _init_args_hst(self, args: Any, kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
            return list(args), dict(kwargs)

        def _restore_args_dev(self, *_: Any) -> None:
            pass

    return HostExecutor

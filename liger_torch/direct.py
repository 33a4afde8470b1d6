"""Triton's kernels started on a GPU at the least cost to the host.

`kernel[grid](...)` finds the compiled kernel anew at every call: it looks at the type, the alignment and the value of
every argument, and asks the driver about every pointer. A `Launch` fixes types, integers and constants; all that is
left is whether addresses are multiples of 16. Where all of them are, which is nearly always, the compiled kernel that
the first call returned is run as it is, with addresses in place of tensors.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from triton.compiler import CompiledKernel

from liger.launch import Launch

KNOWN = triton.__version__.startswith(("3.6.", "3.7.")) and torch.version.hip is None
"""Whether this is a Triton whose `CompiledKernel.run` takes what it is given here. (Its AMD backend also looks at sizes
of arrays.)"""


EMPTY_CUDA = getattr(torch._C._dynamo.guards, "_empty_strided_cuda", None)
"""What Inductor's code allocates with: torch.empty_strided without the way through the dispatcher."""


def start(launch: Launch, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> Any:
    """Launch by Triton's own dispatch on the current device, compiling if need be. Returns the compiled kernel."""
    return launch.kernel[launch.grid](
        *inputs,
        *launch.integers,
        *outputs,
        **dict(launch.constants),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        enable_fp_fusion=True,  # Triton is about to change the default; all frontends fuse
    )


Allocators = list[Callable[[], torch.Tensor]]


def allocators(
    arrays: Sequence[tuple[torch.Tensor, bool]], device: torch.device
) -> tuple[Allocators, Allocators]:
    """What allocates arrays like these on a device: by torch's operators, and in the quickest way.

    Args:
        arrays: with the shape, strides and dtype, and whether they are zero at first.
        device: where; it is the current one when they are called.
    """
    plain: Allocators = []
    quick: Allocators = []
    for like, zeros in arrays:
        shape, strides, dtype = tuple(like.shape), like.stride(), like.dtype
        if zeros:
            plain.append(functools.partial(torch.zeros, shape, dtype=dtype, device=device))
        else:
            plain.append(functools.partial(torch.empty_strided, shape, strides, dtype=dtype, device=device))
        if EMPTY_CUDA is not None and device.type == "cuda" and not zeros:
            quick.append(functools.partial(EMPTY_CUDA, shape, strides, dtype))
        else:
            quick.append(plain[-1])
    return plain, quick


Call = tuple[Callable[..., object], tuple[Any, ...], Callable[[list[Any]], tuple[Any, ...]]]
"""A function, what it is given first, and what picks the rest: addresses, integers, constants."""


class Launches:
    """Launches one after the other on one GPU, of arrays that stand in a list.

    Args:
        steps: each launch with the places of its inputs and of its outputs.
        n_arrays: the length of the list.
        n_inputs: how many at its head come from elsewhere. What comes after them was allocated for these launches, or
            has no elements, and so is aligned.
        device: the GPU.
    """

    def __init__(
        self,
        steps: Sequence[tuple[Launch, Sequence[int], Sequence[int]]],
        n_arrays: int,
        n_inputs: int,
        device: torch.device,
    ) -> None:
        self._steps = steps
        self._n_inputs = n_inputs
        self._index = device.index
        self._fixed: list[Any] = []  # what all launches are given after their addresses, to be picked from
        self._picks = []
        for launch, inputs, outputs in steps:
            integers = range(n := n_arrays + len(self._fixed), n + len(launch.integers))
            constants = range(integers.stop, integers.stop + len(launch.constants))
            self._fixed += [*launch.integers, *(value for _, value in launch.constants)]
            self._picks.append(operator.itemgetter(*inputs, *integers, *outputs, *constants))
        self._compiled: list[Any] = []
        self._calls: dict[int, Sequence[Call]] = {}  # by stream

    def __call__(self, arrays: Sequence[torch.Tensor | None]) -> None:
        """Launch them, on the current device. None stands for an array that no launch is given."""
        values = [0 if array is None else array.data_ptr() for array in arrays]
        if not KNOWN or functools.reduce(operator.or_, values[: self._n_inputs], 0) & 15 or _hooks():
            self._start(arrays)
        elif self._compiled:
            values += self._fixed
            stream = torch._C._cuda_getCurrentRawStream(self._index)
            for run, head, pick in self._calls.get(stream) or self._calls_on(stream):
                run(*head, *pick(values))
        else:
            kernels = self._start(arrays)
            if all(isinstance(kernel, CompiledKernel) for kernel in kernels):  # and none still being compiled
                self._compiled = kernels

    def _calls_on(self, stream: int) -> Sequence[Call]:
        pairs = zip(self._steps, self._compiled, self._picks, strict=True)
        calls = [(*_direct(launch, kernel, stream), pick) for (launch, _, _), kernel, pick in pairs]
        return self._calls.setdefault(stream, calls)

    def _start(self, arrays: Sequence[torch.Tensor | None]) -> list[Any]:
        def at(places: Sequence[int]) -> list[Any]:
            return [arrays[i] for i in places]

        return [start(launch, at(inputs), at(outputs)) for launch, inputs, outputs in self._steps]


def _direct(
    launch: Launch, kernel: CompiledKernel, stream: int
) -> tuple[Callable[..., object], tuple[Any, ...]]:
    """What runs a compiled kernel: a function, and what it is given before the kernel's own arguments."""
    grid = (*launch.grid, 1, 1)[:3]
    run = kernel.run
    # Metadata of the launch, and the hooks before and after it.
    unhooked = (kernel.packed_metadata, None, None, None)
    if triton.__version__.startswith("3.6.") and not run.global_scratch_size + run.profile_scratch_size:
        flags = (run.launch_cooperative_grid, run.launch_pdl)
        without_scratch = (None, None)
        return run.launch, (*grid, stream, kernel.function, *flags, *without_scratch, *unhooked)
    return run, (*grid, stream, kernel.function, *unhooked)


_runtime = triton.knobs.runtime


def _hooks() -> bool:
    """Whether somebody wants to be told of launches, which Triton's dispatch does."""
    try:
        return bool(_runtime.launch_enter_hook.calls or _runtime.launch_exit_hook.calls)
    except AttributeError:  # no chains of hooks, as Triton has them at first
        return True

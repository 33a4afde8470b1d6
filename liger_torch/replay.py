"""Passes of an op that are nothing but launches: gone through once for arrays of one layout, replayed from then on.

An op's algorithm asks for shapes, dtypes and strides, plans launches, and gives its results their shapes. The outcome
is the same for all arrays of one layout, and finding it takes longer than a small kernel runs. So `record` goes through
the algorithm with arrays that have no memory, and notes what is left to do with arrays that have: what to copy, to
allocate and to launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch

from liger import interpret
from liger.launch import Launch
from liger.mesh import OneDevice
from liger_torch.backend import DTYPES, Tensors, TorchBackend
from liger_torch.direct import Launches, allocators

Algorithm = Callable[[Any, Tensors], Tensors]
"""(backend, inputs) -> results"""


def at(places: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """What picks those at these places, as a tuple."""
    if len(places) > 1:
        return itemgetter(*places)
    return (lambda arrays: (arrays[places[0]],)) if places else lambda arrays: ()


class NotLaunchesAlone(Exception):
    """The algorithm does something that is neither a launch nor a view."""


def record(backend: TorchBackend, algorithm: Algorithm, inputs: Tensors) -> Recording:
    """What the algorithm does with inputs that lie like these.

    Raises:
        NotLaunchesAlone: it cannot be replayed.
    """
    recorder = Recorder(backend, inputs)
    return Recording(recorder, algorithm(recorder, recorder.inputs), backend.torch_device)


class Recorder(OneDevice):
    """The `liger.backend.Backend` that notes launches, of meta tensors. What it does not have cannot be replayed.

    Arrays are known by their memory, whatever shape they are seen in.
    """

    def __init__(self, backend: TorchBackend, inputs: Tensors) -> None:
        self.device = backend.device
        self.inputs = tuple([None if t is None else _without_memory(t) for t in inputs])
        self.copies: list[tuple[torch.Tensor, int]] = []  # with the memory that they are copied from
        self.buffers: list[tuple[torch.Tensor, bool]] = []  # and whether they are zero at first
        self.steps: list[tuple[Launch, list[int], list[int]]] = []  # with the memory of inputs and outputs
        self._backend = backend
        self._memory = {memory(t) for t in self.inputs if t is not None}

    def __getattr__(self, name: str) -> Any:
        raise NotLaunchesAlone(name)

    def dtype(self, array: torch.Tensor) -> str:
        """See `liger.backend.Backend`."""
        return self._backend.dtype(array)

    def strides(self, array: torch.Tensor) -> tuple[int, ...]:
        """See `liger.backend.Backend`."""
        return self._backend.strides(array)

    def reshape(self, array: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        return self._backend.reshape(array, shape)

    def matrix(self, array: torch.Tensor) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        return self._view_or_copy(array, self._backend.matrix(array))

    def dense(self, array: torch.Tensor) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        return self._view_or_copy(array, self._backend.dense(array))

    def cast(self, array: torch.Tensor, dtype: str) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        if array.dtype != DTYPES[dtype]:
            raise NotLaunchesAlone("cast")
        return array

    def empty(self, shape: Sequence[int], dtype: str, zeros: bool = False) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        array = torch.empty(tuple(shape), dtype=DTYPES[dtype], device="meta")
        self.buffers.append((array, zeros))
        self._memory.add(memory(array))
        return array

    def zeros(self, shape: Sequence[int], dtype: str) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        return self.empty(shape, dtype, zeros=True)

    def launch(self, launch: Launch, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See `liger.backend.Backend`."""
        aliased = {out: inputs[i] for i, out in launch.aliases}
        outputs = tuple(
            aliased[i].view(spec.shape) if i in aliased else self.empty(spec.shape, spec.dtype)
            for i, spec in enumerate(launch.outputs)
        )
        if not launch.is_empty:
            self.steps.append((launch, [self.known(t) for t in inputs], [self.known(t) for t in outputs]))
        return outputs

    def known(self, array: torch.Tensor) -> int:
        """The memory of an input or of what was made on the way, seen from its first element on."""
        if memory(array) not in self._memory or array.storage_offset():
            raise NotLaunchesAlone("memory of unknown origin")
        return memory(array)

    def _view_or_copy(self, array: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        if memory(result) not in self._memory:
            if self.steps:  # which may have written to the array; all copies are made before the first launch
                raise NotLaunchesAlone("a copy after a launch")
            self.copies.append((result, self.known(array)))
            self._memory.add(memory(result))
        return result


class Recording:
    """What a pass does with inputs of one layout. Called with them, it returns the pass's results.

    The arrays of a call stand in one list: the inputs, what is the same for every call (None for what is absent, arrays
    without elements), copies, and what is allocated.
    """

    def __init__(self, recorder: Recorder, results: Tensors, device: torch.device) -> None:
        # Every memory in the shape in which it stands in the list; what is allocated, in that of its first result.
        shown = {memory(t): t for t in recorder.inputs if t is not None}
        shown |= {memory(t): shown[source] for t, source in recorder.copies}
        self._views: list[tuple[int, torch.Size]] = []  # of what is returned in another shape
        for i, result in enumerate(results):
            if result is None:
                continue
            known = shown.setdefault(recorder.known(result), result)
            if (known.shape, known.stride()) != (result.shape, result.stride()):
                if not result.is_contiguous():
                    raise NotLaunchesAlone("a result with gaps")
                self._views.append((i, result.shape))
        made = [(t, zeros) for t, zeros in recorder.buffers if t.numel() or memory(t) in shown]
        nothing = [t for t, _ in recorder.buffers if not t.numel() and memory(t) not in shown]
        arrays = [*recorder.inputs, None, *nothing, *(t for t, _ in recorder.copies), *(t for t, _ in made)]
        place = {memory(t): i for i, t in enumerate(arrays) if t is not None}
        self._same = (None, *(torch.empty(0, dtype=t.dtype, device=device) for t in nothing))
        self._copies = [place[source] for _, source in recorder.copies]
        self._allocators = allocators([(shown.get(memory(t), t), zeros) for t, zeros in made], device)
        places = [len(recorder.inputs) if t is None else place[memory(t)] for t in results]
        self._results = at(places)
        steps = [
            (launch, [place[m] for m in inputs], [place[m] for m in outputs])
            for launch, inputs, outputs in recorder.steps
        ]
        self._run = _running(steps, len(arrays), len(recorder.inputs), device)
        self._gpu = device if device.type == "cuda" else None

    def __call__(self, inputs: Tensors) -> Tensors:
        """The results for inputs of this layout."""
        if self._gpu is not None and torch._C._cuda_getDevice() != self._gpu.index:
            with torch.cuda.device(self._gpu):
                return self(inputs)
        arrays = [*inputs, *self._same]
        for i in self._copies:
            arrays.append(arrays[i].contiguous())  # type: ignore[union-attr]
        # What watches torch's operators, as FakeTensorMode does, is to see these too.
        plain, quick = self._allocators
        arrays += [make() for make in (plain if torch._C._len_torch_dispatch_stack() else quick)]
        self._run(arrays)
        results: Tensors = self._results(arrays)
        if self._views:
            shaped = list(results)
            for i, shape in self._views:
                shaped[i] = shaped[i].view(shape)  # type: ignore[union-attr]
            return tuple(shaped)
        return results


def _running(
    steps: Sequence[tuple[Launch, list[int], list[int]]], n_arrays: int, n_inputs: int, device: torch.device
) -> Callable[[Sequence[torch.Tensor | None]], None]:
    """What runs these launches, given the arrays."""
    if device.type == "cuda":
        return Launches(steps, n_arrays, n_inputs, device)

    def interpreted(arrays: Sequence[torch.Tensor | None]) -> None:
        addresses = [0 if array is None else array.data_ptr() for array in arrays]
        for launch, inputs, outputs in steps:
            interpret.run(launch, [addresses[i] for i in inputs], [addresses[i] for i in outputs])

    # On "meta" there is nothing to run: shapes and memory are all that is asked for.
    return interpreted if device.type == "cpu" else lambda arrays: None


def memory(tensor: torch.Tensor) -> int:
    """What two tensors have in common if they show the same memory."""
    return tensor.untyped_storage()._cdata


def _without_memory(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

"""Every address that the catalogue's launches touch lies inside its array, beyond 2**31 elements too.

The program that does the last rows runs in the interpreter, whose integers wrap around as they do on a GPU, on arrays
that have addresses but no memory: loads give zeros, stores are dropped, and the addresses are looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder as Builder

from liger import device as devices
from liger import interpret
from liger.launch import DTYPE_BYTES, Launch, cdiv
from liger_triton.catalogue import Entry, catalogue

SPACING = 44
"""log2 of the distance between two arrays: more than any of them has bytes."""

ENTRIES = catalogue(devices.DEFAULT)


NAMED: dict[tuple[str, str], Callable[[Launch, np.ndarray], Any]] = {
    ("embedding_forward", "ids_ptr"): lambda launch, _: launch.inputs[0].shape[0] - 1,
    ("embedding_chunk_sums", "order_ptr"): lambda launch, _: launch.inputs[0].shape[0] - 1,
    ("embedding_backward", "order_ptr"): lambda launch, _: launch.inputs[0].shape[0] - 1,
    # The last row of the table has the last 100 tokens: whole chunks, and some tokens before and behind them.
    ("embedding_backward", "starts_ptr"): lambda launch, row: (
        launch.inputs[0].shape[0] - np.where(row < launch.inputs[2].shape[0] - 1, 100, 0)
    ),
}
"""What is loaded where a row is looked up by its number: the last one. Everything else is zero."""


class Memory:
    """Arrays without memory; keeps the addresses that were touched, array by array, as offsets in bytes."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.furthest = [-1] * len(sizes)

    def touch(self, addresses: np.ndarray, mask: np.ndarray, itemsize: int) -> None:
        addresses = np.broadcast_to(addresses, mask.shape)[mask.astype(bool)]
        if addresses.size == 0:
            return
        array = int(addresses[0] >> np.uint64(SPACING)) - 1
        begin = address_of(array)
        offsets = addresses.astype(np.int64) - begin
        assert 0 <= array < len(self.sizes), hex(addresses[0])
        assert offsets.min() >= 0, f"array {array}: {offsets.min()} bytes from its first element"
        last = int(offsets.max()) + itemsize
        assert last <= self.sizes[array], f"array {array} of {self.sizes[array]} bytes: byte {last}"
        self.furthest[array] = max(self.furthest[array], last)


def address_of(array: int) -> int:
    return (array + 1) << SPACING


DEALT_OUT = {"norm_backward": "ROWS", "qk_norm_rope_backward": "Q_TOKENS"}
"""Kernels that deal tiles of rows out in turn, and what a tile's height is called."""

FROM_THE_END = ("group_norm_apply", "group_norm_input_gradient")
"""Kernels whose first program takes the last rows: what was read last is still in the cache."""


def last_program(launch: Launch) -> tuple[int, ...]:
    """The program that works on the last rows."""
    if launch.name in DEALT_OUT:
        tiles = cdiv(launch.integers[0], int(dict(launch.constants)[DEALT_OUT[launch.name]]))
        return ((tiles - 1) % launch.grid[0], 0, 0)
    if launch.name in FROM_THE_END:
        return (0, 0, 0)
    if (
        launch.name == "group_norm_backward"
    ):  # deals images out in turn, to as many programs as there are group blocks
        constants = dict(launch.constants)
        blocks = cdiv(int(constants["n_groups"]), int(constants["GROUPS"]))
        return ((launch.integers[0] - 1) % (launch.grid[0] // blocks) * blocks + blocks - 1, 0, 0)
    x, y, z = (n - 1 for n in (*launch.grid, 1, 1)[:3])
    return x, y, z


def run_last_program(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> Memory:
    launch = entry.launch
    sizes = array_bytes(entry)
    memory = Memory(sizes)
    grid = (*launch.grid, 1, 1)[:3]
    last = last_program(launch)

    def load(self: Any, pointers: Any, mask: Any, *_: Any) -> Any:
        dtype = pointers.get_element_ty()
        numpy_dtype = interpreter._get_np_dtype(dtype)
        memory.touch(pointers.data, mask.data, numpy_dtype.itemsize)
        values = np.zeros(mask.data.shape, numpy_dtype)
        if mask.data.any():
            first = int(np.broadcast_to(pointers.data, mask.data.shape)[mask.data][0])
            array = (first >> SPACING) - 1
            named = NAMED.get((launch.name, launch.kernel.arg_names[array]))
            if named is not None:
                offsets = pointers.data.astype(np.int64) - address_of(array)
                values[:] = np.where(mask.data, named(launch, offsets // numpy_dtype.itemsize), 0)
        return interpreter.TensorHandle(values, dtype)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *_: Any) -> None:
        memory.touch(pointers.data, mask.data, value.data.itemsize)

    set_dim, set_index = Builder.set_grid_dim, Builder.set_grid_idx
    monkeypatch.setattr(Builder, "create_masked_load", load)
    monkeypatch.setattr(Builder, "create_masked_store", store)
    monkeypatch.setattr(Builder, "set_grid_dim", lambda self, *_: set_dim(self, *grid))
    monkeypatch.setattr(Builder, "set_grid_idx", lambda self, *_: set_index(self, *last))
    interpret.prepare()
    n_inputs = len(launch.inputs)
    inputs = interpret._pointers([address_of(i) for i in range(n_inputs)], launch.inputs)
    outputs = interpret._pointers(
        [address_of(n_inputs + i) for i in range(len(launch.outputs))], launch.outputs
    )
    executor = interpret._executor_class()(launch.kernel.rewrite(), launch.kernel.arg_names, (1, 1, 1))
    with np.errstate(all="ignore"):  # the numbers are zeros
        executor(*inputs, *launch.integers, *outputs, **dict(launch.constants))
    return memory


def array_bytes(entry: Entry) -> list[int]:
    """Bytes of inputs and outputs; none of those that are not to be touched."""
    launch: Launch = entry.launch
    inputs = [
        0 if spec.unread else extent * DTYPE_BYTES[spec.dtype]
        for spec, extent in zip(launch.inputs, entry.extents, strict=True)
    ]
    outputs = [spec.nbytes for spec in launch.outputs]
    for source, output in launch.aliases:
        # What is overwritten unread has its size as an output alone.
        outputs[output] = max(outputs[output], inputs[source])
    return inputs + outputs


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])
def test_addresses_lie_inside(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = run_last_program(entry, monkeypatch)
    dtypes = [spec.dtype for spec in (*entry.launch.inputs, *entry.launch.outputs)]
    elements = [size // DTYPE_BYTES[dtype] for size, dtype in zip(memory.sizes, dtypes, strict=True)]
    reached = [byte // DTYPE_BYTES[dtype] for byte, dtype in zip(memory.furthest, dtypes, strict=True)]
    for size, last in zip(elements, reached, strict=True):
        if size > 2**31:
            assert last > 2**31, "the last program did not come near the end of a large array"

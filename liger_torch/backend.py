"""The `Backend` protocol on torch: views, `out=` and in-place products on reused workspaces."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import array_api_compat.torch
import torch

from liger import device as devices
from liger import interpret
from liger.device import Device
from liger.launch import Launch
from liger.mesh import OneDevice
from liger.reference.common import NAMESPACES
from liger_torch.direct import start

DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
Tensors = tuple[torch.Tensor | None, ...]

NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}

NAMESPACES.update({torch.Tensor: array_api_compat.torch, torch.nn.Parameter: array_api_compat.torch})

WIDEST_GAP = 16
"""Row stride, in rows, up to which a matrix with gaps is read as it lies."""

INTERPRET = interpret.enabled()
"""Whether kernels run in Triton's interpreter, on CPU tensors. Fixed when the process starts."""


@functools.cache
def _cuda_device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        arch: int | str = properties.gcnArchName.split(":")[0]
        vendor = "hip"
    else:
        arch = properties.major * 10 + properties.minor
        vendor = "cuda"
    return Device(
        vendor=vendor,
        arch=arch,
        multiprocessors=properties.multi_processor_count,
        l2_bytes=properties.L2_cache_size,
        shared_bytes=getattr(properties, "shared_memory_per_block_optin", 64 << 10),
        warp_size=properties.warp_size,
    )


class TorchBackend(OneDevice):
    """The protocol for tensors of one device."""

    def __init__(self, device: torch.device) -> None:
        self.torch_device = device
        self.device = _cuda_device(device.index) if device.type == "cuda" else devices.DEFAULT

    def dtype(self, array: torch.Tensor) -> str:
        """See `liger.backend.Backend`."""
        return NAMES[array.dtype]

    def strides(self, array: torch.Tensor) -> tuple[int, ...]:
        """See `liger.backend.Backend`."""
        return array.stride()

    def matrix(self, array: torch.Tensor) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        if array.dim() == 1:
            array = array.unsqueeze(0)
        rows, columns = math.prod(array.shape[:-1]), array.shape[-1]
        if array.stride(-1) != 1 and columns != 1:
            array = array.contiguous()
        matrix = array if array.dim() == 2 else array.reshape(rows, columns)
        # Strides are compiled in. Those of a slice of a wider array are fixed by the model; those of the last tokens
        # of a batch change with its length, and such a slice is small: it is cheaper copied than compiled for anew.
        if rows == 1:
            return matrix.as_strided((1, columns), (columns, 1))
        return matrix.contiguous() if matrix.stride(0) > WIDEST_GAP * columns else matrix

    def dense(self, array: torch.Tensor) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        return array.contiguous()

    def launch(self, launch: Launch, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See `liger.backend.Backend`."""
        aliased = {out: inputs[i] for i, out in launch.aliases}
        outputs = tuple(
            aliased[i].view(spec.shape)
            if i in aliased
            else torch.empty(spec.shape, dtype=DTYPES[spec.dtype], device=self.torch_device)
            for i, spec in enumerate(launch.outputs)
        )
        if launch.is_empty:
            return outputs
        kind = self.torch_device.type
        if kind == "cuda":
            with _current(self.torch_device):
                start(launch, inputs, outputs)
        elif kind == "cpu":
            interpret.run(launch, [t.data_ptr() for t in inputs], [t.data_ptr() for t in outputs])
        # On "meta" there is nothing to run: shapes and memory are all that is asked for.
        return outputs

    def empty(self, shape: Sequence[int], dtype: str) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        return torch.empty(tuple(shape), dtype=DTYPES[dtype], device=self.torch_device)

    def zeros(self, shape: Sequence[int], dtype: str) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        return torch.zeros(tuple(shape), dtype=DTYPES[dtype], device=self.torch_device)

    def reshape(self, array: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        return array.view(tuple(shape))

    def transpose(self, matrix: torch.Tensor) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        return matrix.t()

    def matmul(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        *,
        out: torch.Tensor | None = None,
        add_to: torch.Tensor | None = None,
        dtype: str | None = None,
    ) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        if add_to is not None:
            if add_to.dtype == a.dtype:
                return torch.addmm(add_to, a, b, out=add_to)
            if a.is_meta:
                return add_to
            if a.is_cuda and torch.version.hip is None:
                # Operands stay in their 16-bit dtype, on the fast matrix units; only the sum is wide.
                return torch.addmm(add_to, a, b, out_dtype=add_to.dtype, out=add_to)
            return add_to.add_(self._product(a, b, add_to.dtype))
        if dtype is not None and DTYPES[dtype] != a.dtype:
            return self._product(a, b, DTYPES[dtype])
        return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)

    def _product(self, a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if a.is_meta:  # planned as on a GPU, which needs no copies of the operands
            return torch.empty(a.shape[0], b.shape[1], dtype=dtype, device="meta")
        if a.is_cuda and torch.version.hip is None:
            return torch.mm(a, b, out_dtype=dtype)
        return torch.mm(a.to(dtype), b.to(dtype))

    def slice_rows(self, array: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        return array[start:stop]

    def update_rows(self, array: torch.Tensor, start: int, rows: torch.Tensor) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        target = array[start : start + rows.shape[0]]
        if target.data_ptr() != rows.data_ptr() or rows.device.type == "meta":
            target.copy_(rows)
        return array

    def concat_rows(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))

    def take_rows(self, array: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        return array.index_select(0, index)

    def put_rows(self, array: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        return array.index_copy_(0, index, rows)

    def scatter_rows(
        self, rows: torch.Tensor, index: torch.Tensor, n_rows: int, *, fill: int = 0
    ) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        out = torch.full((n_rows, *rows.shape[1:]), fill, dtype=rows.dtype, device=rows.device)
        return out.index_copy_(0, index, rows)

    def sort(self, vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `liger.backend.Backend`."""
        values, index = torch.sort(vector, stable=True)
        return values, index.to(torch.int32)

    def cast(self, array: torch.Tensor, dtype: str) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        return array.to(DTYPES[dtype])

    def sum_rows(
        self, matrix: torch.Tensor, dtype: str, *, add_to: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `liger.backend.Backend`."""
        total = matrix.sum(0, dtype=DTYPES[dtype])
        return total if add_to is None else add_to.add_(total)


class _NoContext:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


_NO_CONTEXT = _NoContext()


def _current(device: torch.device) -> _NoContext | torch.cuda.device:
    """A context in which `device` is the current one; free of cost where it is already."""
    return _NO_CONTEXT if torch.cuda.current_device() == device.index else torch.cuda.device(device)


@functools.lru_cache(64)
def backend_for(device: torch.device) -> TorchBackend:
    """The backend of a device."""
    return TorchBackend(device)

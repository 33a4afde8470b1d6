"""Launches whose geometry may be tuned: the geometries that are tried, and launches of each at representative sizes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from liger import geometry
from liger.device import Device
from liger.launch import DTYPE_BYTES, Launch, Spec, cdiv
from liger_triton import (
    layer_norm,
    norm,
    norm_geometry,
    pairs,
    qk_norm_rope_backward,
    qk_norm_rope_layout,
    rms_norm,
)
from liger_triton.catalogue.call import BF16, FP32
from liger_triton.reduce import sum_partials_launch


@dataclasses.dataclass(frozen=True, slots=True)
class Tunable:
    """One launch of one size class.

    Attributes:
        name: the launch, as the table names it.
        itemsize: bytes of its widest dtype.
        size: its size class.
        rule: the geometry that the launch's own rule gives.
        candidates: the geometries that are tried, among them the rule's.
        timed: the launches that a geometry leads to, for so many rows; the sum of their times is what counts.
        variants: launches with that geometry that have to work as well.
    """

    name: str
    itemsize: int
    size: int
    rule: Any
    candidates: tuple[Any, ...]
    timed: Callable[[Any, int], tuple[Launch, ...]]
    variants: Callable[[Any, int], tuple[Launch, ...]]

    @property
    def title(self) -> str:
        """For reports."""
        return f"{self.name} {8 * self.itemsize}-bit {self.size}"

    def chosen(self, device: Device) -> Any:
        """The geometry that is used."""
        return geometry.choose(self.name, self.itemsize, self.size, device, self.rule)


def _norm_backward(
    options: norm.Options,
    dtype: str,
    device: Device,
    layout: norm_geometry.Geometry,
    n_rows: int,
    n_cols: int,
    ds: bool,
) -> Launch:
    want = norm.Gradients(True, True, options.center)
    return norm.backward_launch(
        n_rows, n_cols, dtype, dtype, dtype, n_cols, n_cols, n_cols if ds else None, want, options, device, layout
    )  # fmt: skip


def _norm_timed(
    options: norm.Options, dtype: str, device: Device, size: int, layout: norm_geometry.Geometry, n_rows: int
) -> tuple[Launch, ...]:
    first = _norm_backward(options, dtype, device, layout, n_rows, size, False)
    _, *partials = (spec.shape for spec in first.outputs if spec.size)
    return first, sum_partials_launch(*partials[0], (dtype,) * len(partials))


def _norm_variants(
    options: norm.Options, dtype: str, device: Device, size: int, layout: norm_geometry.Geometry, n_rows: int
) -> tuple[Launch, ...]:
    """With a residual's cotangent; and rows that are no power of two."""
    return (
        _norm_backward(options, dtype, device, layout, n_rows, size, True),
        _norm_backward(options, dtype, device, layout, n_rows, size - 24, False),
    )


def _norm_backwards(device: Device) -> Iterator[Tunable]:
    ops: dict[str, norm.Options] = {
        "rms_norm_backward": rms_norm.Options(),
        "layer_norm_backward": layer_norm.Options(),
    }
    for (name, options), dtype in itertools.product(ops.items(), (BF16, FP32)):
        itemsize = DTYPE_BYTES[dtype]
        widest = norm_geometry.MAX_BLOCK // 2 if options.center else norm_geometry.MAX_BLOCK
        for size in (2**i for i in range(6, widest.bit_length())):
            rule = norm_geometry.backward_rule(size, itemsize, options.center, device)
            yield Tunable(
                name,
                itemsize,
                size,
                rule,
                _norm_candidates(size, itemsize, rule, device),
                functools.partial(_norm_timed, options, dtype, device, size),
                functools.partial(_norm_variants, options, dtype, device, size),
            )


def _norm_candidates(
    size: int, itemsize: int, rule: norm_geometry.Geometry, device: Device
) -> tuple[norm_geometry.Geometry, ...]:
    found = {rule: None}
    for rows, programs, warps, stages in itertools.product(
        (2**i for i in range(7)), (1, 2, 4, 8), (4, 8, 16, 32), (1, 3, 4)
    ):
        per_thread = rows * size // (warps * device.warp_size)
        resident = programs * warps * device.warp_size
        # Loads of 16 bytes, registers for four tiles in fp32, and a pipeline that fits the shared memory. (Two stages
        # are one buffer, whose loads wait until it has been read.)
        if not (
            16 // itemsize <= per_thread <= 32 and 256 <= resident <= 1024 and per_thread * resident <= 16_384
        ):
            continue
        if 2 * programs * (stages - 1) * rows * size * itemsize > device.shared_bytes - (16 << 10):
            continue
        found[norm_geometry.Geometry(rows, programs, warps, stages)] = None
    return tuple(found)


def _heads_backward(
    dtype: str,
    device: Device,
    size: int,
    heads: tuple[int, int],
    layout: qk_norm_rope_backward.Geometry,
    n_tokens: int,
) -> Launch:
    q, k = (pairs.Heads(n, size, (0, n, 1), size) for n in heads)
    cos = qk_norm_rope_layout.Tables(Spec((1, n_tokens, size), dtype, resident=True), (0, 1), size)
    return qk_norm_rope_backward.backward_launch(
        1, n_tokens, dtype, dtype, dtype, *(qk_norm_rope_backward.Side(x, x, True, True) for x in (q, k)), cos,
        qk_norm_rope_layout.Options(), device, layout,
    )  # fmt: skip


def _heads_timed(
    dtype: str, device: Device, size: int, layout: qk_norm_rope_backward.Geometry, n_rows: int
) -> tuple[Launch, ...]:
    """Rows are heads here."""
    first = _heads_backward(dtype, device, size, (32, 8), layout, cdiv(n_rows, 40))
    return first, sum_partials_launch(*first.outputs[2].shape, (dtype, dtype))


def _heads_variants(
    dtype: str, device: Device, size: int, layout: qk_norm_rope_backward.Geometry, n_rows: int
) -> tuple[Launch, ...]:
    """Models with few heads, and with an odd number of them."""
    return tuple(
        _heads_backward(dtype, device, size, heads, layout, cdiv(n_rows, 8)) for heads in ((4, 1), (15, 5))
    )


def _heads_backwards(device: Device) -> Iterator[Tunable]:
    candidates = tuple(
        qk_norm_rope_backward.Geometry(tile, programs, warps, stages)
        for tile, programs, warps, stages in itertools.product(
            (256, 512, 1024, 2048), (2, 4, 8, 16), (1, 2, 4, 8), (1, 3, 4)
        )
        if 8 <= tile // (warps * device.warp_size) <= 16
        and 256 <= programs * warps * device.warp_size <= 1024
    )
    for size in (64, 128, 256):
        rule = qk_norm_rope_backward.backward_rule(size, 2, device)
        yield Tunable(
            "qk_norm_rope_backward",
            2,
            size,
            rule,
            tuple(dict.fromkeys((rule, *candidates))),
            functools.partial(_heads_timed, BF16, device, size),
            functools.partial(_heads_variants, BF16, device, size),
        )


@functools.cache
def tunables(device: Device) -> tuple[Tunable, ...]:
    """All of them, planned for the device."""
    return (*_norm_backwards(device), *_heads_backwards(device))

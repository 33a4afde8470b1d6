"""What the forms of GroupNorm share: options, sizes, and where an element lies."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import triton
import triton.language as tl

from liger.backend import Array
from liger.launch import Spec

UNIT = 8
"""Positions are counted in these where they are a multiple of it, so that the compiler knows rows to be aligned."""


@triton.jit
def offset_of(image, channel, position, n_channels, n_positions, CHANNELS_LAST: tl.constexpr):
    """Where an element lies; `image` and `n_positions` are int64."""
    if CHANNELS_LAST:
        return image * n_channels * n_positions + position.to(tl.int64) * n_channels + channel
    return image * n_channels * n_positions + channel.to(tl.int64) * n_positions + position


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What GroupNorm is asked to do beside its arrays.

    Attributes:
        num_groups: groups of neighbouring channels, all of one size.
        eps: added to the variance.
        channels_last: x is (images, positions, channels) instead of (images, channels, positions).
    """

    num_groups: int
    eps: float = 1e-6
    channels_last: bool = False


class Shape(NamedTuple):
    """The sizes of x, whatever their order."""

    images: int
    channels: int
    positions: int

    @staticmethod
    def of(x: Spec | Array, channels_last: bool) -> Shape:
        """The sizes of this array."""
        images, first, second = x.shape
        return Shape(images, second, first) if channels_last else Shape(images, first, second)

    def spec(self, dtype: str, options: Options, *, unread: bool = False) -> Spec:
        """An array like x."""
        images, channels, positions = self
        last = (positions, channels) if options.channels_last else (channels, positions)
        return Spec((images, *last), dtype, unread=unread)

    def units(self) -> tuple[int, int]:
        """The positions as (number of units, size of a unit)."""
        size = 1 if self.positions % UNIT else UNIT
        return self.positions // size, size


Constants = tuple[tuple[str, int | float | bool], ...]


def layout(shape: Shape, options: Options) -> Constants:
    """The constants of every kernel."""
    return (
        ("n_channels", shape.channels),
        ("CHANNELS_LAST", options.channels_last),
        ("UNIT", shape.units()[1]),
    )


def vector(shape: Shape, dtype: str | None) -> Spec:
    """The weight or the bias; unread where there is none."""
    return Spec((shape.channels,), dtype or "float32", resident=True, unread=dtype is None)


def per_group(shape: Shape, options: Options, *, unread: bool = False) -> Spec:
    """The mean or 1 / sqrt(variance + eps), one number per image and group."""
    return Spec((shape.images, options.num_groups), "float32", resident=True, unread=unread)

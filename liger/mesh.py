"""The devices that one op's arrays may be spread over, as an algorithm or a reference sees them.

A mesh holds other tokens on other devices ("rows"), other parts of a vocabulary ("columns"), or both. An op whose
tokens have nothing to do with one another needs to know nothing of it; a loss that is summed over tokens, and a
softmax over a vocabulary that is spread out, ask here for what the other devices have.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

Over = Literal["rows", "columns"]


class Mesh(Protocol):
    """What every device of a mesh can ask, all of them at the same place of the program."""

    def size(self, over: Over) -> int:
        """Among how many devices the rows, or the columns, are divided."""
        ...

    def psum(self, *arrays: Any, over: Over) -> tuple[Any, ...]:
        """The arrays, each summed over the devices that hold other rows, or other columns."""
        ...

    def pmax(self, array: Any, over: Over) -> Any:
        """The largest of the devices' values, element by element; not differentiable."""
        ...

    def first_column(self, width: int) -> Any:
        """Index of this device's first column where each has `width`: an int32 array of one element, or 0 for all."""
        ...


class OneDevice:
    """The mesh of an array that lies on one device whole."""

    def size(self, over: Over) -> int:
        """See `Mesh`."""
        return 1

    def psum(self, *arrays: Any, over: Over) -> tuple[Any, ...]:
        """See `Mesh`."""
        return arrays

    def pmax(self, array: Any, over: Over) -> Any:
        """See `Mesh`."""
        return array

    def first_column(self, width: int) -> Any:
        """See `Mesh`."""
        return 0


ONE_DEVICE = OneDevice()

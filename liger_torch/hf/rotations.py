"""The ways in which models write the rotation of q and k, as far as `liger_rope` computes them."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import torch

from liger_torch.autograd import uses_reference
from liger_torch.functional import liger_rope
from liger_torch.hf import probe
from liger_triton.rope import MROPE, ROPE, MultimodalOptions, Options

FULL, FIRST_HALF, PER_PAIR = "full", "first half", "per pair"
"""Which columns of the tables are used: one for each entry of a head, the first half of them, or one for each pair."""

RTOL = 1e-9
"""In float64."""

HEAD_DIM, SECTIONS = 16, (2, 3, 3)


@dataclasses.dataclass(frozen=True)
class Rotation:
    """A form of rotation.

    Attributes:
        interleaved: pairs are neighbours and not halves.
        table: `FULL`, `FIRST_HALF` or `PER_PAIR`.
        reverse: rotates the other way.
        axis: the axis of the heads, of functions without an argument for it.
        complex: cos and sin are one table of complex numbers.
        sections: takes three tables, and how many pairs each rotates.
    """

    interleaved: bool = False
    table: str = FULL
    reverse: bool = False
    axis: int = 1
    complex: bool = False
    sections: bool = False

    @property
    def name(self) -> str:
        """How reports call it."""
        details = ["interleaved" if self.interleaved else "half"]
        details += [f"tables {self.table}"] if self.table != FULL and not self.complex else []
        flags = {"reverse": self.reverse, "complex": self.complex, "mrope": self.sections}
        return f"rope[{', '.join(details + [name for name, on in flags.items() if on])}]"

    def tables(self, tables: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin as `liger_rope` takes them."""
        cos, sin = torch.view_as_real(tables[0]).unbind(-1) if self.complex else tables
        if self.table == FIRST_HALF:
            half = cos.shape[-1] // 2
            cos, sin = cos[..., :half], sin[..., :half]
        return cos, -sin if self.reverse else sin

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, tables: tuple[torch.Tensor, ...], axis: int, sections: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rotation, by the kernel; q and k without a batch are (seq, heads, head_dim)."""
        cos, sin = self.tables(tables)
        width = cos.shape[-1] * (1 if self.table == FULL else 2)
        flat = q.dim() == 3
        if flat:
            q, k = q.unsqueeze(0), k.unsqueeze(0)
        q, k = liger_rope(
            q, k, cos, sin, None, axis, width, mrope_section=sections, interleaved=self.interleaved
        )
        return (q.squeeze(0), k.squeeze(0)) if flat else (q, k)

    def reference(
        self, q: torch.Tensor, k: torch.Tensor, tables: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of (batch, seq, heads, head_dim), by the op's reference."""
        cos, sin = self.tables(tables)
        if self.sections:
            planes = (table.movedim(0, 2) for table in (cos, sin))
            rotated = MROPE.reference((q, k, *planes), MultimodalOptions(SECTIONS))
        else:
            rotated = ROPE.reference((q, k, cos, sin), Options(self.interleaved, self.table != FULL))
        assert rotated[0] is not None and rotated[1] is not None
        return rotated[0], rotated[1]


class Signature:
    """What a function's parameters are, found by their names."""

    def __init__(self, function: Any) -> None:
        parameters = probe.parameters_of(function)
        self.names = [p.name for p in parameters]
        self.defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        self.is_complex = len(self.names) > 2 and self.names[2].startswith("freqs_c")
        self.tables = self.names[2:3] if self.is_complex else self.names[2:4]
        self.has_axis = "unsqueeze_dim" in self.names
        self.has_sections = "mrope_section" in self.names
        known = {*self.names[:2], *self.tables, "unsqueeze_dim", "mrope_section", "position_ids"}
        self.unknown = [name for name in self.names if name not in known and name not in self.defaults]

    @property
    def takes_q_and_k(self) -> bool:
        """Whether it is called with (q, k, cos, sin, ...) or (q, k, complex table, ...)."""
        return (self.is_complex or self.tables == ["cos", "sin"]) and not self.unknown

    @property
    def default_axis(self) -> int | None:
        """The axis of the heads where the caller names none."""
        default = self.defaults.get("unsqueeze_dim")
        return default if isinstance(default, int) else None


@dataclasses.dataclass(frozen=True)
class Known:
    """A function that was recognised.

    Attributes:
        rotation: its form.
        partial: rotates the first entries of a head where the tables are narrower.
        casts: returns q and k in their own dtype where the tables have a wider one.
        flat: also takes (seq, heads, head_dim) with tables (seq, width), as vision towers have them.
    """

    rotation: Rotation
    partial: bool = False
    casts: bool = False
    flat: bool = False


def recognise(function: Any) -> Known | str:
    """What a function (q, k, tables, ...) computes, or why that is not known."""
    signature = Signature(function)
    if not signature.takes_q_and_k:
        return f"takes ({', '.join(signature.names)}), not (q, k, cos, sin, ...)"
    errors: list[Exception] = []
    for rotation in _rotations(signature):
        try:
            if not _agrees(function, signature, rotation, HEAD_DIM):
                continue
        except Exception as error:  # somebody else's code, fed with what it may not expect
            errors.append(error)
            continue
        return Known(
            rotation,
            not rotation.sections and _holds(_agrees, function, signature, rotation, HEAD_DIM // 2),
            _holds(_casts, function, signature, rotation),
            rotation.axis == 2 and _holds(_agrees, function, signature, rotation, HEAD_DIM, True),
        )
    if len(errors) == len(list(_rotations(signature))):
        return f"could not be probed: {type(errors[0]).__name__}: {errors[0]}"
    return "rotates neither halves nor neighbours by (cos, sin)"


def _rotations(signature: Signature) -> Iterator[Rotation]:
    """The forms that a function with these parameters may have."""
    axes = (1,) if signature.has_axis else (1, 2)
    if signature.is_complex:
        for interleaved, reverse, axis in itertools.product((True, False), (False, True), axes):
            yield Rotation(interleaved, PER_PAIR, reverse, axis=axis, complex=True)
    elif signature.has_sections:
        yield Rotation(sections=True)
    else:
        for interleaved, table, reverse, axis in itertools.product(
            (False, True), (FULL, FIRST_HALF, PER_PAIR), (False, True), axes
        ):
            yield Rotation(interleaved, table, reverse, axis)


def _tables(rotation: Rotation, width: int) -> tuple[torch.Tensor, ...]:
    """Tables for heads of which `width` entries are rotated; any numbers, so that each column must be in its place."""
    columns = width // 2 if rotation.table == PER_PAIR else width
    shape = (3, 2, 5, columns) if rotation.sections else (2, 5, columns)
    cos, sin = probe.random(*shape, seed=2), probe.random(*shape, seed=3)
    return (torch.complex(cos, sin),) if rotation.complex else (cos, sin)


def _call(function: Any, signature: Signature, q: Any, k: Any, tables: Any, axis: int) -> Any:
    """Call a function with q and k of (batch, seq, heads, head_dim), and bring back the results as such."""
    options: dict[str, Any] = {}
    if signature.has_axis:
        options["unsqueeze_dim"] = axis
    if signature.has_sections:
        options["mrope_section"] = list(SECTIONS)
    if axis == 1:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    rotated = function(q, k, *tables, **options)
    if not isinstance(rotated, tuple) or len(rotated) != 2:
        return None
    return tuple(x.transpose(1, 2) for x in rotated) if axis == 1 else rotated


def _operands(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    q, k = probe.random(2, 5, 4, HEAD_DIM), probe.random(2, 5, 2, HEAD_DIM, seed=1)
    return q.to(dtype), k.to(dtype)


def _agrees(function: Any, signature: Signature, rotation: Rotation, width: int, flat: bool = False) -> bool:
    q, k = _operands()
    tables = _tables(rotation, width)
    expected = rotation.reference(q, k, tables)
    if flat:
        q, k, tables = q[0], k[0], tuple(table[0] for table in tables)
        expected = (expected[0][0], expected[1][0])
    for axis in (1, 2) if signature.has_axis else (rotation.axis,):
        actual = _call(function, signature, q.clone(), k.clone(), tables, axis)
        if actual is None:
            return False
        for one, other in zip(actual, expected, strict=True):
            if not isinstance(one, torch.Tensor):
                return False
            if probe.distance(one, other) > RTOL and not _agrees_in_float32(one, other):
                return False
    return True


def _agrees_in_float32(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Of a function that rounds to float32 in between: no other form is nearly that close."""
    return probe.distance(actual.double(), expected) < 1e-5


def _casts(function: Any, signature: Signature, rotation: Rotation) -> bool:
    q, k = _operands(torch.bfloat16)
    tables = tuple(
        table.to(torch.complex64 if table.is_complex() else torch.float32)
        for table in _tables(rotation, HEAD_DIM)
    )
    rotated = _call(function, signature, q, k, tables, rotation.axis)
    return rotated is not None and all(x.dtype == torch.bfloat16 for x in rotated)


def _holds(check: Any, *arguments: Any) -> bool:
    try:
        return bool(check(*arguments))
    except Exception:  # somebody else's code, fed with what it may not expect
        return False


def fits(
    known: Known, q: torch.Tensor, k: torch.Tensor, tables: tuple[torch.Tensor, ...], axis: int, sections: Any
) -> bool:
    """Whether the kernel computes what the original would, shapes and dtypes considered."""
    rotation = known.rotation
    cos, sin = tables[0], tables[-1]
    if known.flat and q.dim() == 3:
        if k.dim() != 3 or cos.dim() != 2 or axis != 2:
            return False
        shape, other = (1, q.shape[0], q.shape[2]), (1, k.shape[0], k.shape[2])
        table_shape = (1, *cos.shape)
    else:
        if q.dim() != 4 or k.dim() != 4 or cos.dim() != 3 + rotation.sections or axis not in (1, 2):
            return False
        shape, other = (
            (q.shape[0], q.shape[3 - axis], q.shape[3]),
            (k.shape[0], k.shape[3 - axis], k.shape[3]),
        )
        table_shape = tuple(cos.shape[-3:])
    batch, seq, head_dim = shape
    width = table_shape[2] * (2 if rotation.table == PER_PAIR else 1)
    if rotation.sections and (cos.shape[0] != 3 or 2 * sum(sections) != width):
        return False
    return (
        shape == other
        and cos.shape == sin.shape
        and table_shape[0] in (1, batch)
        and table_shape[1] == seq
        and (width == head_dim or (known.partial and width < head_dim))
        and width % 2 == 0
        and width > 0
        and q.device == k.device == cos.device == sin.device
        and q.dtype == k.dtype
        and cos.dtype == sin.dtype
        and not (cos.requires_grad or sin.requires_grad)
        and (q.dtype != torch.float64 or uses_reference(q))
        and (known.casts or _keeps_dtype(q, cos))
    )


def _keeps_dtype(q: torch.Tensor, cos: torch.Tensor) -> bool:
    """Whether the original returns q's dtype, or attention casts its result to that anyway."""
    if torch.promote_types(q.dtype, cos.dtype) == q.dtype:
        return True
    kind = q.device.type
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == q.dtype

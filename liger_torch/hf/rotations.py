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

HALVES, NEIGHBOURS, DEINTERLEAVED = "half", "interleaved", "deinterleaved"
"""What a pair is: an entry of each half, two neighbours, or neighbours that become an entry of each half."""

FIRST, LAST = "first", "last"
"""Which entries of a head are rotated, where the tables are narrower."""

TOLERANCE = 1e-5
"""Relative to a head's largest entry: some functions compute in float32. No other form is nearly that close."""

HEAD_DIM, SECTIONS = 16, (2, 3, 3)

Tensors = tuple[torch.Tensor, ...]


@dataclasses.dataclass(frozen=True)
class Rotation:
    """A form of rotation.

    Attributes:
        pairs: `HALVES`, `NEIGHBOURS` or `DEINTERLEAVED`.
        table: `FULL`, `FIRST_HALF` or `PER_PAIR`.
        reverse: rotates the other way.
        axis: the axis of the heads, of functions without an argument for it.
        complex: cos and sin are one table of complex numbers.
        sections: takes three tables, and how many pairs each rotates.
    """

    pairs: str = HALVES
    table: str = FULL
    reverse: bool = False
    axis: int = 1
    complex: bool = False
    sections: bool = False

    @property
    def name(self) -> str:
        """How reports call it."""
        details = [self.pairs]
        details += [f"tables {self.table}"] if self.table != FULL and not self.complex else []
        flags = {"reverse": self.reverse, "complex": self.complex, "mrope": self.sections}
        return f"rope[{', '.join(details + [name for name, on in flags.items() if on])}]"

    @property
    def interleaved(self) -> bool:
        """As `liger_rope` calls it."""
        return self.pairs != HALVES

    @property
    def deinterleave(self) -> bool:
        """Likewise."""
        return self.pairs == DEINTERLEAVED

    def tables(self, tables: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin as `liger_rope` takes them."""
        cos, sin = torch.view_as_real(tables[0]).unbind(-1) if self.complex else tables
        if self.table == FIRST_HALF:
            half = cos.shape[-1] // 2
            cos, sin = cos[..., :half], sin[..., :half]
        return cos, -sin if self.reverse else sin

    def width(self, columns: int) -> int:
        """Entries of a head that tables of so many columns rotate."""
        return columns * (2 if self.table == PER_PAIR else 1)

    def rotate(self, xs: Tensors, tables: Tensors, axis: int, sections: Any) -> Tensors:
        """q and k, or one tensor, by the kernel."""
        cos, sin = self.tables(tables)
        width = cos.shape[-1] * (1 if self.table == FULL else 2)
        q, k = xs if len(xs) == 2 else (xs[0], _without_heads(xs[0], axis))
        return liger_rope(
            q,
            k,
            cos,
            sin,
            None,
            axis,
            width,
            mrope_section=sections,
            interleaved=self.interleaved,
            deinterleave=self.deinterleave,
        )[: len(xs)]

    def reference(self, xs: Tensors, tables: Tensors) -> Tensors:
        """The same of (batch, seq, heads, head_dim), by the op's reference."""
        cos, sin = self.tables(tables)
        q, k = xs[0], xs[-1]
        if self.sections:
            planes = (table.movedim(0, 2) for table in (cos, sin))
            rotated = MROPE.reference((q, k, *planes), MultimodalOptions(SECTIONS))
        else:
            options = Options(self.interleaved, self.table != FULL, self.deinterleave)
            rotated = ROPE.reference((q, k, cos, sin), options)
        assert rotated[0] is not None and rotated[1] is not None
        return (rotated[0], rotated[1])[: len(xs)]


def _without_heads(x: torch.Tensor, axis: int) -> torch.Tensor:
    shape = list(x.shape)
    shape[axis] = 0
    return x.new_empty(shape)


class Signature:
    """What a function's parameters are, found by their names."""

    def __init__(self, function: Any) -> None:
        parameters = probe.parameters_of(function)
        self.names = [p.name for p in parameters]
        self.defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        # One or two that are rotated stand in front of the tables, which older models have the other way round.
        n = next((i for i, name in enumerate(self.names) if _is_table(name)), 0)
        self.rotated = self.names[:n]
        self.is_complex = n > 0 and self.names[n].startswith("freqs_c")
        self.tables = self.names[n : n + 1] if self.is_complex else sorted(self.names[n : n + 2])
        self.has_axis = "unsqueeze_dim" in self.names
        self.has_sections = "mrope_section" in self.names
        known = {*self.rotated, *self.tables, "unsqueeze_dim", "mrope_section"}
        self.unknown = [name for name in self.names if name not in known and name not in self.defaults]

    @property
    def is_rotation(self) -> bool:
        """Whether it takes (q, k, cos, sin, ...), (q, k, complex table, ...), or one tensor for q and k."""
        return len(self.rotated) in (1, 2) and (self.is_complex or self.tables == ["cos", "sin"])

    @property
    def default_axis(self) -> int | None:
        """What `unsqueeze_dim` is where the caller gives none."""
        default = self.defaults.get("unsqueeze_dim")
        return default if isinstance(default, int) else None


def _is_table(name: str) -> bool:
    return name in ("cos", "sin") or name.startswith("freqs_c")


@dataclasses.dataclass(frozen=True)
class Known:
    """A function that was recognised.

    Attributes:
        rotation: its form.
        batched: takes tables of (batch, seq, width).
        shared: takes tables of (seq, width).
        flat: takes (seq, heads, head_dim) and tables of (seq, width), as vision towers have them.
        partial: `FIRST` or `LAST` if that many entries of a head are rotated where the tables are narrower.
        casts: returns q and k in their own dtype where the tables have a wider one.
    """

    rotation: Rotation
    batched: bool = True
    shared: bool = False
    flat: bool = False
    partial: str | None = None
    casts: bool = False


def recognise(function: Any) -> Known | str:
    """What a function (q, k, tables, ...) computes, or why that is not known."""
    signature = Signature(function)
    if not signature.is_rotation or signature.unknown:
        return f"takes ({', '.join(signature.names)}), not (q, k, cos, sin, ...)"
    errors: list[Exception] = []
    n_tried = 0
    closest = ("", 0.0)
    # Tables without a batch axis are tried after all others: a function that takes both is known by the usual ones.
    for batched, rotation in itertools.product((True, False), _rotations(signature)):
        trial = _Trial(function, signature, rotation, batched)
        n_tried += 1
        try:
            share = trial.share()
        except Exception as error:  # somebody else's code, fed with what it may not expect
            errors.append(error)
            continue
        if share == 1.0:
            return trial.known()
        closest = max(closest, (rotation.name, share), key=lambda found: found[1])
    if len(errors) == n_tried:
        return f"could not be probed: {type(errors[0]).__name__}: {errors[0]}"
    if closest[1] < 0.2:
        return "not a rotation of halves or neighbours by (cos, sin)"
    return f"closest to {closest[0]}, with {closest[1]:.0%} of the values equal"


def _rotations(signature: Signature) -> Iterator[Rotation]:
    """The forms that a function with these parameters may have."""
    axes = (1,) if signature.has_axis else (1, 2)
    if signature.is_complex:
        for pairs, reverse, axis in itertools.product((NEIGHBOURS, HALVES), (False, True), axes):
            yield Rotation(pairs, PER_PAIR, reverse, axis=axis, complex=True)
    elif signature.has_sections:
        yield Rotation(sections=True)
    else:
        for pairs, table, reverse, axis in itertools.product(
            (HALVES, NEIGHBOURS, DEINTERLEAVED), (FULL, FIRST_HALF, PER_PAIR), (False, True), axes
        ):
            yield Rotation(pairs, table, reverse, axis)


@dataclasses.dataclass(frozen=True)
class _Trial:
    """A function, and a form that it may have."""

    function: Any
    signature: Signature
    rotation: Rotation
    batched: bool

    def known(self) -> Known:
        """What the function takes, its form being this one."""
        by_token = not self.rotation.sections
        return Known(
            self.rotation,
            self.batched,
            by_token and self._holds(batched=False),
            by_token and self.rotation.axis == 2 and self._holds(flat=True),
            next((p for p in (FIRST, LAST) if by_token and self._holds(HEAD_DIM // 2, partial=p)), None),
            self._casts(),
        )

    def _holds(self, width: int = HEAD_DIM, *, batched: bool | None = None, **options: Any) -> bool:
        trial = self if batched is None else dataclasses.replace(self, batched=batched)
        try:
            return trial.share(width, **options) == 1.0
        except Exception:  # somebody else's code, fed with what it may not expect
            return False

    def share(self, width: int = HEAD_DIM, *, flat: bool = False, partial: str = FIRST) -> float:
        """The share of values that are as the form has them; all for every axis that the heads may be."""
        xs, tables = self._operands(), self._tables(width)
        if flat:
            tables = self._tables(width, flat=True)
        named = tables if self.batched and not flat else tuple(table[None] for table in tables)
        rest = HEAD_DIM - width if partial == LAST else 0
        expected = self.rotation.reference(tuple(x[..., rest:] for x in xs), named)
        expected = tuple(torch.cat((x[..., :rest], y), -1) for x, y in zip(xs, expected, strict=True))
        axes = (1, 2) if self.signature.has_axis else (self.rotation.axis,)
        if flat:
            xs, expected = tuple(x[0] for x in xs), tuple(y[0] for y in expected)
        return min(
            _share(one, other)
            for axis in axes
            for one, other in zip(self._call(xs, tables, axis), expected, strict=True)
        )

    def _operands(self, dtype: torch.dtype = torch.float64) -> Tensors:
        shapes = ((2, 5, 4, HEAD_DIM), (2, 5, 2, HEAD_DIM))
        n = len(self.signature.rotated)
        return tuple(probe.random(*shape, seed=seed).to(dtype) for seed, shape in enumerate(shapes[:n]))

    def _tables(self, width: int, *, flat: bool = False) -> Tensors:
        """Tables that rotate so many entries; any numbers, so that each column must be in its place."""
        columns = width // self.rotation.width(1)
        lead = (3, 2) if self.rotation.sections else (2,) if self.batched and not flat else ()
        cos, sin = (probe.random(*lead, 5, columns, seed=seed) for seed in (2, 3))
        return (torch.complex(cos, sin),) if self.rotation.complex else (cos, sin)

    def _call(self, xs: Tensors, tables: Tensors, axis: int) -> Tensors:
        """Call the function with (batch, seq, heads, head_dim), and bring back the results as such."""
        options: dict[str, Any] = dict(zip(self.signature.tables, tables, strict=True))
        if self.signature.has_axis:
            options["unsqueeze_dim"] = axis if self.batched else axis - 1
        if self.signature.has_sections:
            options["mrope_section"] = list(SECTIONS)
        given = [x.transpose(1, 2) if axis == 1 else x.clone() for x in xs]
        rotated = self.function(*given, **options)
        rotated = rotated if len(xs) == 2 else (rotated,)
        return tuple(x.transpose(1, 2) for x in rotated) if axis == 1 else tuple(rotated)

    def _casts(self) -> bool:
        narrow = {torch.complex128: torch.complex64, torch.float64: torch.float32}
        tables = tuple(table.to(narrow[table.dtype]) for table in self._tables(HEAD_DIM))
        try:
            rotated = self._call(self._operands(torch.bfloat16), tables, self.rotation.axis)
        except Exception:  # as above
            return False
        return all(x.dtype == torch.bfloat16 for x in rotated)


def _share(actual: Any, expected: torch.Tensor) -> float:
    if not isinstance(actual, torch.Tensor) or actual.shape != expected.shape:
        return 0.0
    near = (actual.double() - expected).abs() <= TOLERANCE * expected.abs().amax(-1, keepdim=True)
    return near.double().mean().item()


def rotate(
    known: Known, xs: Tensors, tables: Tensors, unsqueeze_dim: int | None, sections: Any
) -> Tensors | None:
    """What the original would compute, by the kernel; None for shapes and dtypes for which that is not the same."""
    rotation = known.rotation
    cos = tables[0]
    flat = known.flat and all(x.dim() == 3 for x in xs) and cos.dim() == 2
    if flat:
        xs, tables = tuple(x.unsqueeze(0) for x in xs), tuple(table.unsqueeze(0) for table in tables)
    if any(x.dim() != 4 for x in xs):
        return None
    # An axis that is added to a table without a batch axis comes one later among those of q and k.
    axis = rotation.axis if unsqueeze_dim is None else unsqueeze_dim + (cos.dim() == 2)
    if axis not in (1, 2):
        return None
    q, k = xs[0], xs[-1]
    batch, seq, head_dim = q.shape[0], q.shape[3 - axis], q.shape[3]
    columns = cos.shape[-1]
    if known.shared and not flat and (cos.dim() == 2 or not known.batched):
        if cos.shape[0] != seq or cos.numel() != seq * columns:
            return None
        tables = tuple(table.reshape(1, seq, columns) for table in tables)
    elif not (flat or known.batched):
        return None
    cos, sin = tables[0], tables[-1]
    width = rotation.width(columns)
    fits = (
        (batch, seq, head_dim) == (k.shape[0], k.shape[3 - axis], k.shape[3])
        and cos.dim() == (4 if rotation.sections else 3)
        and cos.shape == sin.shape
        and cos.shape[-3] in (1, batch)
        and cos.shape[-2] == seq
        and (width == head_dim or (known.partial is not None and width < head_dim))
        and width % 2 == 0
        and width > 0
        and (not rotation.sections or (cos.shape[0] == 3 and 2 * sum(sections) == width))
        and q.device == k.device == cos.device == sin.device
        and q.dtype == k.dtype
        and cos.dtype == sin.dtype
        and not (cos.requires_grad or sin.requires_grad)
        and (q.dtype != torch.float64 or uses_reference(q))
        and (known.casts or _keeps_dtype(q, cos))
    )
    if not fits:
        return None
    rest = head_dim - width if known.partial == LAST else 0
    rotated = rotation.rotate(tuple(x[..., rest:] for x in xs) if rest else xs, tables, axis, sections)
    if rest:
        rotated = tuple(torch.cat((x[..., :rest], y), -1) for x, y in zip(xs, rotated, strict=True))
    return tuple(y.squeeze(0) for y in rotated) if flat else rotated


def _keeps_dtype(q: torch.Tensor, cos: torch.Tensor) -> bool:
    """Whether the original returns q's dtype, or attention casts its result to that anyway."""
    if torch.promote_types(q.dtype, cos.dtype) == q.dtype:
        return True
    kind = q.device.type
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == q.dtype

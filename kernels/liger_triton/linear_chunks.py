"""Logits of a linear layer in a few large chunks of rows, and the gradients gathered over them.

    logits = x @ weight^T

What every op shares that is fused with the linear layer before it: how the rows are cut, the workspace that one chunk
of logits after another passes through, and the sums of the chunks' gradients. The op puts its own kernel between
`LinearChunks.logits` and `LinearChunks.add`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

from liger import check
from liger.backend import Array, Backend
from liger.device import Device
from liger.launch import DTYPE_BYTES, Spec, cdiv

LAYOUTS = ("vh", "hv")
"""A weight (vocab, hidden), torch's, or (hidden, vocab), Flax's."""

MAX_ROUNDED_SUMS = 4
"""Chunks whose weight gradients may be added in a 16-bit dtype.

Every addition rounds. Over n chunks of like size the error grows to about sqrt((n + 1) / 2) roundings, against the
one rounding of a single product: 1.6 for 4 chunks, and 1.8 where the products that are added are rounded as well. Both
stay below the factor of 2 that is promised.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How the rows are cut, and where the weight gradient is gathered."""

    chunk_rows: int
    n_chunks: int
    accum_dtype: str


@functools.lru_cache(4096)
def plan(
    n_rows: int,
    hidden_size: int,
    vocab_size: int,
    dtype: str,
    weight_gradient: bool,
    accum_dtype: str | None,
    chunk_bytes: int | None,
    device: Device,
    buffer_dtype: str | None = None,
) -> Plan:
    """Cut the rows by the bytes of their logits, as little as the memory allows.

    Few large chunks are both the fastest (the products fill the GPU, the weight gradient is read and written less
    often) and the most accurate.
    """
    itemsize = DTYPE_BYTES[dtype]
    row_bytes = vocab_size * itemsize
    weight_bytes = hidden_size * row_bytes
    if chunk_bytes is None:
        budget = max(512_000_000, weight_bytes // 2)
        # Below this a chunk's products no longer fill the multiprocessors with tiles of 128 x 256.
        fewest = round_up(cdiv(128 * 256 * device.multiprocessors, hidden_size), 256)
        rows = max(budget // row_bytes, min(max(1024, fewest), 2 * budget // row_bytes), 1)
    else:
        rows = max(chunk_bytes // row_bytes, 1)
    most = n_rows if chunk_bytes is None else rows
    n_chunks = max(cdiv(n_rows, rows), 1)
    accum = accum_dtype or buffer_dtype or dtype
    chosen = accum_dtype is None and weight_gradient
    if chosen and DTYPE_BYTES[accum] < 4 and n_chunks > MAX_ROUNDED_SUMS:
        larger_workspace = cdiv(n_rows, MAX_ROUNDED_SUMS) * row_bytes + weight_bytes
        wide_sum = 2 * weight_bytes + max(rows * row_bytes, weight_bytes)
        if buffer_dtype is not None or (chunk_bytes is None and larger_workspace <= wide_sum):
            n_chunks, most = MAX_ROUNDED_SUMS, n_rows
        else:
            accum = "float32"
    chunk = cdiv(n_rows, n_chunks)
    if chunk >= 1024:  # whole tiles
        chunk = min(round_up(chunk, 256), most)
    return Plan(max(chunk, 1), cdiv(n_rows, max(chunk, 1)), accum)


def whole_units(units: Sequence[int], n_chunks: int) -> list[range]:
    """Cut units of rows that must not be parted into at most `n_chunks` chunks of like size.

    A unit goes where its middle falls if the rows are cut evenly. No more chunks than that: sums of weight gradients
    are made for their number. Units without rows may be in none: there is no chunk of them alone.
    """
    n_rows = sum(units)
    ends = itertools.accumulate(units)
    chunk_of = [
        min((2 * end - size) * n_chunks // max(2 * n_rows, 1), n_chunks - 1)
        for end, size in zip(ends, units, strict=True)
    ]
    firsts = [i for i in range(len(units)) if i == 0 or chunk_of[i] != chunk_of[i - 1]]
    chunks = [range(a, b) for a, b in itertools.pairwise((*firsts, len(units)))]
    return [chunk for chunk in chunks if any(units[i] for i in chunk)]


def joined(
    backend: Backend, parts: Sequence[tuple[Array | None, ...]], of_no_rows: Sequence[Spec | None]
) -> tuple[Array | None, ...]:
    """Each chunk's results per row as those of all rows; of no chunks, what `of_no_rows` says."""
    if parts:
        return tuple(None if c[0] is None else backend.concat_rows(c) for c in zip(*parts, strict=True))
    # An array for each: were one of them two outputs, torch would take neither for differentiable or both.
    return tuple(None if s is None else backend.zeros(s.shape, s.dtype) for s in of_no_rows)


def round_up(n: int, multiple: int) -> int:
    """The next multiple that is at least n."""
    return cdiv(n, multiple) * multiple


@dataclasses.dataclass
class Sums:
    """Gradients gathered over the chunks.

    Attributes:
        x: of the rows.
        weight: a sum.
        bias: likewise.
        spread: whether x has all rows, with zeros for those that are not computed.
    """

    x: Array | None
    weight: Array | None
    bias: Array | None
    spread: bool


class LinearChunks:
    """A linear layer's operands as matrices, cut into chunks of rows.

    Args:
        backend: of the arrays.
        x: (..., hidden).
        weight: (vocab, hidden) or (hidden, vocab).
        bias: (vocab,), or None. It is left to the op's kernel to add; only its gradient is gathered here.
        layout: of the weight, one of `LAYOUTS`.
        wanted: which gradients of (x, weight, bias) to gather.
        index: the rows of x to compute, all by default.
        accum_dtype: see `plan`.
        chunk_bytes: see `plan`.
        weight_grad: a buffer that the weight's gradient will be added to.
        chunk_rows: rows of a chunk, to go in step with another layer; chosen by `plan` by default.
        bounds: where each chunk ends, for rows that must not be parted; chosen by `plan` by default.
        tail_rows: rows at the end that are a chunk of their own, in memory of their own: to be kept. Being the last
            term of the weight gradient's sum they round it once more only, however many they are.
    """

    def __init__(
        self,
        backend: Backend,
        x: Array,
        weight: Array,
        bias: Array | None,
        *,
        layout: str,
        wanted: tuple[bool, bool, bool] = (False, False, False),
        index: Array | None = None,
        accum_dtype: str | None = None,
        chunk_bytes: int | None = None,
        weight_grad: Array | None = None,
        chunk_rows: int | None = None,
        bounds: Sequence[int] | None = None,
        tail_rows: int = 0,
    ) -> None:
        self.backend, self.weight, self.index = backend, weight, index
        self.bias = None if bias is None else backend.dense(bias)
        self.vh = layout == "vh"
        self.want_x, self.want_weight, self.want_bias = wanted
        self.x_shape = tuple(x.shape)
        self.x = backend.matrix(x)
        self.n_all, self.hidden_size = self.x.shape
        self.n_rows = self.n_all if index is None else index.shape[0]
        self.tail = self.n_rows - tail_rows
        self.vocab_size = weight.shape[0 if self.vh else 1]
        self.dtype = backend.dtype(weight)
        self.bounds = bounds
        if bounds is not None:
            most = max((stop - start for start, stop in self.chunks()), default=1)
            rounds = DTYPE_BYTES[self.dtype] < 4 and len(bounds) > MAX_ROUNDED_SUMS
            self.plan = Plan(most, len(bounds), accum_dtype or ("float32" if rounds else self.dtype))
        elif chunk_rows is None:
            self.plan = plan(
                self.tail,
                self.hidden_size,
                self.vocab_size,
                self.dtype,
                self.want_weight,
                accum_dtype,
                chunk_bytes,
                backend.device,
                None if weight_grad is None else backend.dtype(weight_grad),
            )
        else:
            self.plan = Plan(chunk_rows, cdiv(self.n_rows, chunk_rows), self.dtype)
        self.workspace: Array | None = None
        self.gathered: tuple[int, Array] | None = None

    def per_row(self, array: Array) -> Array:
        """An array with one value per token as the vector of the rows that are computed."""
        backend = self.backend
        flat = backend.reshape(backend.dense(array), (-1,))
        return flat if self.index is None else backend.take_rows(flat, self.index)

    def chunks(self) -> list[tuple[int, int]]:
        """First row, and the one after the last, of each chunk."""
        if self.bounds is not None:
            return list(itertools.pairwise((0, *self.bounds)))
        step = self.plan.chunk_rows
        chunks = [(start, min(start + step, self.tail)) for start in range(0, self.tail, step)]
        return [*chunks, (self.tail, self.n_rows)] if self.tail < self.n_rows else chunks

    def rows(self, start: int, stop: int) -> Array:
        """A chunk's rows of x. A chunk at a time is gathered: of a long batch, all of them together are large."""
        backend = self.backend
        if self.index is None:
            return backend.slice_rows(self.x, start, stop)
        if self.gathered is None or self.gathered[0] != start:
            index = backend.slice_rows(self.index, start, stop)
            self.gathered = start, backend.take_rows(self.x, index)
        return self.gathered[1]

    def logits(self, start: int, stop: int) -> Array:
        """The logits of a chunk without the bias, in the workspace; those of the tail in memory of their own."""
        backend = self.backend
        weight = backend.transpose(self.weight) if self.vh else self.weight
        x = self.rows(start, stop)
        if stop > self.tail:
            self.workspace = None
            return backend.matmul(x, weight)
        if self.workspace is None:
            self.workspace = backend.empty((self.plan.chunk_rows, self.vocab_size), self.dtype)
        return backend.matmul(x, weight, out=backend.slice_rows(self.workspace, 0, stop - start))

    def sums(self, *, compact: bool = False) -> Sums:
        """Sums to `add` to; `compact`: the gradient of x has only the rows that are computed."""
        backend, x = self.backend, None
        spread = self.index is not None and not compact
        if self.want_x:
            make = backend.zeros if spread else backend.empty
            x = make((self.n_all if spread else self.n_rows, self.hidden_size), backend.dtype(self.x))
        return Sums(x, None, None, spread)

    def add(self, sums: Sums, dlogits: Array, start: int, stop: int) -> None:
        """Gather what one chunk's logits gradient contributes."""
        backend = self.backend
        if self.want_x:
            weight = self.weight if self.vh else backend.transpose(self.weight)
            if sums.spread:
                index = backend.slice_rows(self.index, start, stop)
                sums.x = backend.put_rows(sums.x, index, backend.matmul(dlogits, weight))
            else:
                rows = backend.matmul(dlogits, weight, out=backend.slice_rows(sums.x, start, stop))
                sums.x = backend.update_rows(sums.x, start, rows)
        if self.want_weight:
            x = self.rows(start, stop)
            a, b = (backend.transpose(dlogits), x) if self.vh else (backend.transpose(x), dlogits)
            sums.weight = backend.matmul(a, b, add_to=sums.weight, dtype=self.plan.accum_dtype)
        if self.want_bias:
            sums.bias = backend.sum_rows(dlogits, "float32", add_to=sums.bias)

    def finished(self, sums: Sums) -> tuple[Array | None, Array | None, Array | None]:
        """The gradients of x, weight and bias in their operands' dtypes."""
        backend = self.backend
        self.workspace = self.gathered = None
        dx = dw = db = None
        if self.want_x:
            dx = backend.reshape(sums.x, self.x_shape)
        if self.want_weight:
            dw = backend.zeros(self.weight.shape, self.dtype) if sums.weight is None else sums.weight
            dw = backend.cast(dw, self.dtype)
        if self.want_bias:
            assert self.bias is not None
            db = backend.zeros(self.bias.shape, "float32") if sums.bias is None else sums.bias
            db = backend.cast(db, backend.dtype(self.bias))
        return dx, dw, db

    def spread(self, rows: Array, shape: tuple[int, ...], fill: int = 0) -> Array:
        """Values of the rows that were computed, with `fill` for those that were not."""
        if self.index is not None:
            rows = self.backend.scatter_rows(rows, self.index, self.n_all, fill=fill)
        return self.backend.reshape(rows, shape)


def check_linear(
    name: str,
    x: Spec,
    weight: Spec,
    bias: Spec | None,
    layout: str,
    names: tuple[str, str, str] = ("x", "weight", "bias"),
) -> int:
    """Raise unless the operands make a linear layer, in the dtypes that are taken; the size of its vocabulary."""
    x_name, weight_name, bias_name = names
    check.rank_at_least(name, x_name, x, 2, "(..., hidden)")
    check.dtype(name, x_name, x, check.REFERENCE_FLOATS)
    check.same_dtype(name, weight_name, weight, x_name, x)
    check.not_empty(name, x_name, x, -1, "hidden")
    vh = layout == "vh"
    if len(weight.shape) != 2 or weight.shape[1 if vh else 0] != x.shape[-1]:
        raise ValueError(
            f"{name}: {weight_name} has shape {tuple(weight.shape)}; expected "
            f"{'(vocab, hidden)' if vh else '(hidden, vocab)'} with hidden {x.shape[-1]}, the last axis of {x_name}."
        )
    check.not_empty(name, weight_name, weight, 0 if vh else 1, "vocab")
    vocab_size = weight.shape[0 if vh else 1]
    if bias is not None:
        check.dtype(name, bias_name, bias, check.REFERENCE_FLOATS)
        check.shape(name, bias_name, bias, (vocab_size,), "one bias per class")
    return vocab_size

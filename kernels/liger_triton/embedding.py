"""Embedding: rows of a table, and the sum of their gradients.

    y[n]  = weight[ids[n]]
    dw[v] = sum over n with ids[n] = v of dy[n],   0 for v = padding_idx

The ids are sorted (as narrow integers), which puts the tokens of one row of the table beside one another, and every
row of dw is written by one program, which adds those tokens' gradients in fp32 and in order: no atomics. Token counts
are as uneven as words are (Zipf): so that a program does not walk through thousands of tokens, they are cut into chunks
of `CHUNK`, counted in sorted order. Chunks of one id alone are summed first, all at the same time; the row's program
then adds their sums, and at most CHUNK - 1 tokens before and behind them. A row that no token names is set to 0 in the
same pass.

An id outside of the table gives NaN, and has no gradient.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import triton
import triton.language as tl

from liger import check
from liger.backend import Array, Backend
from liger.device import Device
from liger.launch import Launch, Spec, cdiv, next_power_of_2, previous_power_of_2
from liger.op import Arrays, Needs, Op, Operand, Output
from liger.reference import embedding as reference

TILE = 4096
"""Elements of a program's tile: 32 per thread at 4 warps, 8 KiB of bf16 in flight."""

LOOKUP_TILE, LOOKUP_COLUMNS = 2048, 256
"""Elements of a tile that is looked up, and how many of one row at most."""

CHUNK = 32
"""Sorted tokens that are summed together if they have one id."""

SEARCHED = 512
"""Rows of the table whose tokens one program looks for, and ids that one makes keys of."""


# ---------------------------------------------------------------------------------------------------- kernels


@triton.jit
def embedding_forward(
    weight_ptr,  # (vocab_size, n_cols), row stride weight_stride
    ids_ptr,  # (n_rows,)
    n_rows,
    y_ptr,  # (n_rows, n_cols)
    vocab_size: tl.constexpr,
    n_cols: tl.constexpr,
    weight_stride: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COL_BLOCKS: tl.constexpr,
):
    program = tl.program_id(0)
    row = (program // COL_BLOCKS).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = (program % COL_BLOCKS) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (row < n_rows) & (col < n_cols)
    token = tl.load(ids_ptr + row, mask=row < n_rows, other=0).to(tl.int64)
    in_range = (token >= 0) & (token < vocab_size)
    value = tl.load(weight_ptr + token * weight_stride + col, mask=mask & in_range, other=0.0).to(tl.float32)
    y = tl.where(in_range, value, float("nan"))
    # What is written leaves the cache to the table, whose frequent rows are read again.
    tl.store(
        y_ptr + row * n_cols + col, y.to(y_ptr.dtype.element_ty), mask=mask, eviction_policy="evict_first"
    )


@triton.jit
def embedding_keys(
    ids_ptr,  # (n_tokens,)
    n_tokens,
    keys_ptr,  # (n_tokens,): the ids in a narrower dtype, vocab_size for those outside of the table
    vocab_size: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(ids_ptr + token, mask=token < n_tokens, other=0)
    key = tl.where((row >= 0) & (row < vocab_size), row, vocab_size)
    tl.store(keys_ptr + token, key.to(keys_ptr.dtype.element_ty), mask=token < n_tokens)


@triton.jit
def embedding_row_starts(
    ids_ptr,  # (n_tokens,) in ascending order
    n_tokens,
    n_steps,
    starts_ptr,  # (vocab_size + 1,) int32: how many ids are smaller than 0, 1, ... vocab_size
    vocab_size: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    # Binary search: the answer lies in [low, high], which n_steps halvings make one number.
    low = tl.zeros((BLOCK,), tl.int32)
    high = low + n_tokens
    for _ in range(n_steps):
        middle = low + (high - low) // 2
        searching = low < high
        smaller = tl.load(ids_ptr + middle, mask=searching, other=0) < row
        low = tl.where(searching & smaller, middle + 1, low)
        high = tl.where(searching & ~smaller, middle, high)
    tl.store(starts_ptr + row, low, mask=row <= vocab_size)


@triton.jit
def _sum_tokens(
    dy_ptr,
    order_ptr,
    begin,
    n_tokens,
    gap_after,
    gap,
    col,
    col_mask,
    dy_stride,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum of n_tokens gradients: sorted tokens from `begin` on, `gap` left out after the first `gap_after`."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_tokens, GROUP):
        i = start + tl.arange(0, GROUP)
        place = begin + i + tl.where(i < gap_after, 0, gap)
        token = tl.load(order_ptr + place, mask=i < n_tokens, other=0).to(tl.int64)
        mask = (i < n_tokens)[:, None] & col_mask[None, :]
        dy = tl.load(dy_ptr + token[:, None] * dy_stride + col[None, :], mask=mask, other=0.0)
        total += tl.sum(dy.to(tl.float32), axis=0)
    return total


@triton.jit
def embedding_chunk_sums(
    dy_ptr,  # (n_tokens, n_cols)
    ids_ptr,  # (n_tokens,) in ascending order
    order_ptr,  # (n_tokens,) int32: where they were
    sums_ptr,  # (n_chunks, n_cols) float32: those of chunks with one id alone
    padding_idx: tl.constexpr,
    n_cols: tl.constexpr,
    dy_stride: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    COL_BLOCKS: tl.constexpr,
):
    program = tl.program_id(0)
    chunk = program // COL_BLOCKS
    begin = chunk * CHUNK
    first = tl.load(ids_ptr + begin)
    if (first == tl.load(ids_ptr + begin + CHUNK - 1)) & (first != padding_idx):
        col = (program % COL_BLOCKS) * BLOCK + tl.arange(0, BLOCK)
        total = _sum_tokens(
            dy_ptr, order_ptr, begin, CHUNK, CHUNK, 0, col, col < n_cols, dy_stride, GROUP, BLOCK
        )
        tl.store(sums_ptr + chunk.to(tl.int64) * n_cols + col, total, mask=col < n_cols)


@triton.jit
def embedding_backward(
    dy_ptr,  # (n_tokens, n_cols)
    order_ptr,  # (n_tokens,) int32
    starts_ptr,  # (vocab_size + 1,) int32
    sums_ptr,  # (n_chunks, n_cols) float32
    buffer_ptr,  # (vocab_size, n_cols): dw is added to it
    dw_ptr,  # (vocab_size, n_cols), row stride dw_stride
    vocab_size: tl.constexpr,
    padding_idx: tl.constexpr,
    n_cols: tl.constexpr,
    dy_stride: tl.constexpr,
    dw_stride: tl.constexpr,
    INTO_BUFFER: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    COL_BLOCKS: tl.constexpr,
):
    program = tl.program_id(0)
    first_row = program // COL_BLOCKS * ROWS
    col = (program % COL_BLOCKS) * BLOCK + tl.arange(0, BLOCK)
    col_mask = col < n_cols
    rows = first_row + tl.arange(0, ROWS)
    here = rows < vocab_size
    n_tokens = tl.load(starts_ptr + rows + 1, mask=here, other=0)
    n_tokens -= tl.load(starts_ptr + rows, mask=here, other=0)
    n_tokens = tl.where(rows == padding_idx, 0, n_tokens)
    if not INTO_BUFFER:
        offset = rows.to(tl.int64)[:, None] * dw_stride + col[None, :]
        zeros = tl.zeros((ROWS, BLOCK), dw_ptr.dtype.element_ty)
        tl.store(dw_ptr + offset, zeros, mask=(here & (n_tokens == 0))[:, None] & col_mask[None, :])
    if tl.max(n_tokens, axis=0) > 0:
        for i in range(ROWS):
            row = first_row + i
            begin = tl.load(starts_ptr + row, mask=row < vocab_size, other=0)
            end = tl.load(starts_ptr + row + 1, mask=row < vocab_size, other=0)
            if (begin < end) & (row != padding_idx):
                first_chunk = tl.cdiv(begin, CHUNK)
                last_chunk = tl.maximum(end // CHUNK, first_chunk)  # the first one that is not whole
                gap = (last_chunk - first_chunk) * CHUNK
                gap_after = first_chunk * CHUNK - begin
                total = _sum_tokens(
                    dy_ptr, order_ptr, begin, end - begin - gap, gap_after, gap, col, col_mask, dy_stride,
                    GROUP, BLOCK,
                )  # fmt: skip
                for start in range(first_chunk, last_chunk, GROUP):
                    chunk = start + tl.arange(0, GROUP)
                    mask = (chunk < last_chunk)[:, None] & col_mask[None, :]
                    sums = sums_ptr + chunk.to(tl.int64)[:, None] * n_cols + col[None, :]
                    total += tl.sum(tl.load(sums, mask=mask, other=0.0), axis=0)
                target = row.to(tl.int64) * dw_stride + col
                if INTO_BUFFER:
                    total += tl.load(buffer_ptr + target, mask=col_mask, other=0.0).to(tl.float32)
                tl.store(dw_ptr + target, total.to(dw_ptr.dtype.element_ty), mask=col_mask)


# --------------------------------------------------------------------------------------------------- launches


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """Options of `embedding`.

    Attributes:
        padding_idx: the row that gets no gradient.
    """

    padding_idx: int | None = None


NO_PADDING = -1


def _padding(options: Options) -> int:
    return NO_PADDING if options.padding_idx is None else options.padding_idx


@functools.lru_cache(4096)
def forward_launch(
    n_rows: int, vocab_size: int, n_cols: int, dtype: str, ids_dtype: str, weight_stride: int
) -> Launch:
    """y, a copy of one row of the weight per id."""
    block = min(next_power_of_2(n_cols), LOOKUP_COLUMNS)
    rows = min(LOOKUP_TILE // block, 32)
    col_blocks = cdiv(n_cols, block)
    return Launch(
        kernel=embedding_forward,
        grid=(cdiv(n_rows, rows) * col_blocks,),
        inputs=(
            Spec((vocab_size, n_cols), dtype, lookups=n_rows * n_cols),
            Spec((n_rows,), ids_dtype, resident=True),
        ),
        integers=(n_rows,),
        outputs=(Spec((n_rows, n_cols), dtype),),
        constants=(
            ("vocab_size", vocab_size),
            ("n_cols", n_cols),
            ("weight_stride", weight_stride),
            ("ROWS", rows),
            ("BLOCK", block),
            ("COL_BLOCKS", col_blocks),
        ),
        num_warps=4,
    )


def key_dtype(vocab_size: int) -> str:
    """The narrowest dtype of ids: what a sort by digits takes grows with it."""
    return "int16" if vocab_size < 2**15 else "int32"


@functools.lru_cache(4096)
def keys_launch(n_tokens: int, vocab_size: int, ids_dtype: str) -> Launch:
    """The ids as keys to sort by."""
    return Launch(
        kernel=embedding_keys,
        grid=(cdiv(n_tokens, SEARCHED),),
        inputs=(Spec((n_tokens,), ids_dtype),),
        integers=(n_tokens,),
        outputs=(Spec((n_tokens,), key_dtype(vocab_size)),),
        constants=(("vocab_size", vocab_size), ("BLOCK", SEARCHED)),
        num_warps=4,
    )


@functools.lru_cache(4096)
def row_starts_launch(n_tokens: int, vocab_size: int, ids_dtype: str) -> Launch:
    """Where the tokens of each row of the table begin among the sorted ones."""
    return Launch(
        kernel=embedding_row_starts,
        grid=(cdiv(vocab_size + 1, SEARCHED),),
        inputs=(Spec((n_tokens,), ids_dtype, resident=True),),
        integers=(n_tokens, n_tokens.bit_length()),
        outputs=(Spec((vocab_size + 1,), "int32"),),
        constants=(("vocab_size", vocab_size), ("BLOCK", SEARCHED)),
        num_warps=4,
    )


def _summing(n_cols: int) -> tuple[tuple[str, int], ...]:
    """Constants of a program that adds gradients of `n_cols` columns."""
    block = min(next_power_of_2(n_cols), 1024)
    return (
        ("CHUNK", CHUNK),
        ("GROUP", min(TILE // block, CHUNK)),
        ("BLOCK", block),
        ("COL_BLOCKS", cdiv(n_cols, block)),
    )


@functools.lru_cache(4096)
def chunk_sums_launch(
    n_tokens: int, n_cols: int, dtype: str, ids_dtype: str, dy_stride: int, options: Options
) -> Launch:
    """The sums of whole chunks of tokens with one id. Its traffic is counted as if all of them were of that kind."""
    n_chunks = n_tokens // CHUNK
    constants = dict(_summing(n_cols))
    return Launch(
        kernel=embedding_chunk_sums,
        grid=(n_chunks * constants["COL_BLOCKS"],),
        inputs=(
            Spec((n_tokens, n_cols), dtype),
            Spec((n_tokens,), ids_dtype, lookups=2 * n_chunks, resident=True),
            Spec((n_tokens,), "int32", resident=True),
        ),
        outputs=(Spec((n_chunks, n_cols), "float32"),),
        constants=(
            ("padding_idx", _padding(options)),
            ("n_cols", n_cols),
            ("dy_stride", dy_stride),
            *constants.items(),
        ),
        num_warps=4,
        flops=n_tokens * n_cols,
    )


@functools.lru_cache(4096)
def backward_launch(
    n_tokens: int,
    vocab_size: int,
    n_cols: int,
    dtype: str,
    dy_stride: int,
    buffer: tuple[str, int] | None,
    options: Options,
    device: Device,
) -> Launch:
    """dw, or dw added to a buffer of this dtype and row stride. Counted as if no chunk had been summed before."""
    constants = dict(_summing(n_cols))
    block, col_blocks = constants["BLOCK"], constants["COL_BLOCKS"]
    # Most rows of a large table are only set to 0, several of them at a time; of a small one there are none to spare.
    spare = vocab_size * col_blocks // (8 * device.multiprocessors)
    rows = min(2 * TILE // block, 16, previous_power_of_2(spare))
    dw_dtype, dw_stride = (dtype, n_cols) if buffer is None else buffer
    dw = Spec((vocab_size, n_cols), dw_dtype, lookups=None if buffer is None else n_tokens * n_cols)
    return Launch(
        kernel=embedding_backward,
        grid=(cdiv(vocab_size, rows) * col_blocks,),
        inputs=(
            Spec((n_tokens, n_cols), dtype),
            Spec((n_tokens,), "int32", resident=True),
            Spec((vocab_size + 1,), "int32", resident=True),
            Spec((n_tokens // CHUNK, n_cols), "float32"),
            dw if buffer is not None else dataclasses.replace(dw, unread=True),
        ),
        outputs=(dw,),
        constants=(
            ("vocab_size", vocab_size),
            ("padding_idx", _padding(options)),
            ("n_cols", n_cols),
            ("dy_stride", dy_stride),
            ("dw_stride", dw_stride),
            ("INTO_BUFFER", buffer is not None),
            ("ROWS", rows),
            *constants.items(),
        ),
        num_warps=128 // device.warp_size,
        aliases=() if buffer is None else ((4, 0),),
        flops=n_tokens * n_cols,
    )


# ------------------------------------------------------------------------------------------------- algorithms


def _forward(backend: Backend, operands: Arrays, options: Options, needs: Needs) -> tuple[Arrays, Arrays]:
    ids, weight, _ = operands
    assert ids is not None and weight is not None
    table = backend.matrix(weight)
    flat = backend.reshape(backend.dense(ids), (-1,))
    launch = forward_launch(
        flat.shape[0],
        *table.shape,
        backend.dtype(table),
        backend.dtype(flat),
        backend.strides(table)[0],
    )
    (y,) = backend.launch(launch, table, flat)
    return (backend.reshape(y, (*ids.shape, weight.shape[1])),), ()


def _backward(
    backend: Backend, kept: Mapping[str, Array | None], cotangents: Arrays, options: Options, needs: Needs
) -> Arrays:
    weight, ids, buffer = kept["weight"], kept["ids"], kept["weight_grad"]
    assert ids is not None and weight is not None
    vocab_size, n_cols = weight.shape
    dtype = backend.dtype(weight)
    flat = backend.reshape(backend.dense(ids), (-1,))
    n_tokens = flat.shape[0]
    if n_tokens == 0:
        return None, (backend.zeros(weight.shape, dtype) if buffer is None else None), None
    dy = backend.matrix(cotangents[0])
    dy_stride, ids_dtype = backend.strides(dy)[0], key_dtype(vocab_size)
    if backend.dtype(flat) != ids_dtype:
        (flat,) = backend.launch(keys_launch(n_tokens, vocab_size, backend.dtype(flat)), flat)
    ordered, order = backend.sort(flat)
    (starts,) = backend.launch(row_starts_launch(n_tokens, vocab_size, ids_dtype), ordered)
    (sums,) = backend.launch(
        chunk_sums_launch(n_tokens, n_cols, dtype, ids_dtype, dy_stride, options), dy, ordered, order
    )
    into = None if buffer is None else (backend.dtype(buffer), backend.strides(buffer)[0])
    launch = backward_launch(n_tokens, vocab_size, n_cols, dtype, dy_stride, into, options, backend.device)
    # A pointer that is not read: any valid one will do.
    (dw,) = backend.launch(launch, dy, order, starts, sums, starts if buffer is None else buffer)
    return None, (dw if buffer is None else None), None


# --------------------------------------------------------------------------------------------------------- op


def _check(operands: tuple[Spec | None, ...], options: Options) -> None:
    name = "embedding"
    ids, weight, weight_grad = operands
    assert ids is not None and weight is not None
    if len(weight.shape) != 2:
        raise ValueError(f"{name}: weight has shape {tuple(weight.shape)}; expected (vocab, features).")
    check.dtype(name, "weight", weight, check.REFERENCE_FLOATS)
    check.not_empty(name, "weight", weight, 0, "vocab")
    check.not_empty(name, "weight", weight, 1, "features")
    check.dtype(name, "ids", ids, check.LABEL_DTYPES)
    if options.padding_idx is not None:
        check.in_range(name, "padding_idx", options.padding_idx, 0, weight.shape[0] - 1)
    if weight_grad is not None:
        check.shape(name, "weight_grad", weight_grad, tuple(weight.shape), "the shape of weight")
        check.dtype(name, "weight_grad", weight_grad, dict.fromkeys((weight.dtype, "float32")))


def _infer(
    operands: tuple[Spec | None, ...], options: Options, needs: Needs
) -> tuple[tuple[Spec | None, ...], tuple[Spec | None, ...]]:
    ids, weight, _ = operands
    assert ids is not None and weight is not None
    return (Spec((*ids.shape, weight.shape[1]), weight.dtype),), ()


def _reference(operands: Arrays, options: Options) -> Arrays:
    ids, weight, _ = operands
    return (reference.embedding(weight, ids, padding_idx=options.padding_idx),)


EMBEDDING = Op(
    name="embedding",
    operands=(
        Operand("ids", "rows", differentiable=False, axes=0),
        Operand("weight", "shared"),
        Operand("weight_grad", "shared", differentiable=False, optional=True, buffer=True),
    ),
    outputs=(Output("y", "rows"),),
    saved=(),
    options=Options,
    check=_check,
    infer=_infer,
    forward=_forward,
    backward=_backward,
    reference=_reference,
    keeps=lambda options, needs: ("ids", "weight", "weight_grad"),
)

"""Any function of a language model's logits, without holding them all."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from liger.losses.distillation import rows_per_chunk
from liger_jax.functional.options import integer


def map_logits(
    function: Callable[..., jax.Array],
    x: ArrayLike,
    kernel: ArrayLike,
    *arrays: ArrayLike,
    bias: ArrayLike | None = None,
    kernel_layout: str = "hv",
    chunk_bytes: int | None = None,
) -> jax.Array:
    """function(x @ kernel + bias, *arrays), of a few tokens at a time.

    For losses that need more of the logits than `linear_logprobs` gives, such as `liger_jax.losses.cosine_distance` and
    `top_k_divergence`. Each chunk's logits are computed again in the backward pass; the kernel's gradient is summed
    over the chunks in the kernel's dtype. On a mesh, XLA gathers tokens that are divided: use it inside `shard_map`.

    Args:
        function: takes logits (tokens, vocab), of x's dtype or of what adding a bias to it gives, and the same tokens
            of each of `arrays`; returns one number, or one row, per token. It sees rows of zeros beside the last
            tokens, whose results are dropped.
        x: (..., hidden), floating.
        kernel: (hidden, vocab) of x's dtype; (vocab, hidden) with kernel_layout "vh".
        arrays: arrays whose leading axes are x's.
        bias: (vocab,).
        kernel_layout: "hv" or "vh".
        chunk_bytes: memory for the float32 logits of one chunk; 256 MB by default.

    Returns:
        The results of all tokens, of x's leading axes.

    Raises:
        ValueError: an array with other leading axes, or an unknown layout.

    >>> import jax.numpy as jnp
    >>> from liger_jax import losses, map_logits
    >>> x, kernel = jnp.eye(2), jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> map_logits(losses.cosine_distance, x, kernel, jnp.array([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    Array([0., 1.], dtype=float32)
    """
    if kernel_layout not in ("hv", "vh"):
        raise ValueError(f"map_logits: kernel_layout is {kernel_layout!r}; choose 'hv' or 'vh'.")
    if chunk_bytes is not None:
        chunk_bytes = integer("chunk_bytes", chunk_bytes)
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    leading = x.shape[:-1]
    operands = [x, *map(jnp.asarray, arrays)]
    for i, array in enumerate(operands[1:]):
        if array.shape[: len(leading)] != leading:
            raise ValueError(
                f"map_logits: arrays[{i}] has shape {array.shape}; its leading axes must be {leading}, those of x."
            )
    vocab_axis = kernel_layout.index("v")
    n_rows = x.size // x.shape[-1]
    rows = min(max(n_rows, 1), rows_per_chunk(kernel.shape[vocab_axis], chunk_bytes))
    n_chunks = -(-n_rows // rows)

    def chunked(array: jax.Array) -> jax.Array:
        flat = array.reshape(n_rows, *array.shape[len(leading) :])
        padding = [(0, n_chunks * rows - n_rows)] + [(0, 0)] * (flat.ndim - 1)
        return jnp.pad(flat, padding).reshape(n_chunks, rows, *flat.shape[1:])

    @jax.checkpoint
    def of_chunk(chunk: tuple[jax.Array, ...]) -> jax.Array:
        hidden, *rest = chunk
        logits = jax.lax.dot_general(hidden, kernel, (((1,), (1 - vocab_axis,)), ((), ())))
        return function(logits if bias is None else logits + bias, *rest)

    found = jax.lax.map(of_chunk, tuple(map(chunked, operands)))
    found = found.reshape(-1, *found.shape[2:])[:n_rows]
    return found.reshape(*leading, *found.shape[1:])

"""A decoder with the shapes of Llama, Mistral and Qwen2, on this package's layers or on plain Flax.

The two differ in `LayerFunctions`, not in the model: parameters, their paths and the order of the
computation are the same, so a checkpoint of one is a checkpoint of the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from liger_jax import functional
from liger_jax.nnx import checkpoint
from liger_jax.nnx.decoder_config import DecoderConfig
from liger_jax.nnx.embed import Embed
from liger_jax.nnx.norms import RMSNorm

IGNORE_INDEX = -100
"""The label of a token that does not count, as in Hugging Face's models."""

KernelLayout = Literal["hv", "vh"]
"""How a head is stored: (hidden, vocab), as Flax's linear layers are, or (vocab, hidden), as embeddings are."""


@dataclasses.dataclass(frozen=True)
class LayerFunctions:
    """What a layer computes with its parameters.

    Attributes:
        embed_class: the embedding's class.
        norm_class: the norms' class.
        norm: (layer, x) -> the normalised x.
        add_norm: (layer, x, residual) -> (the normalised sum, the sum).
        rope: (q, k, cos, sin) -> the rotated (q, k), all (batch, seq, heads, head_dim).
        gate: (gate, up) -> silu(gate) * up.
        loss: (x, kernel, layout, labels) -> the mean over the labels that count.
    """

    embed_class: type[nnx.Embed]
    norm_class: type[nnx.RMSNorm]
    norm: Callable[[nnx.RMSNorm, jax.Array], jax.Array]
    add_norm: Callable[[nnx.RMSNorm, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    rope: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    gate: Callable[[jax.Array, jax.Array], jax.Array]
    loss: Callable[[jax.Array, jax.Array, KernelLayout, jax.Array], jax.Array]


def _scale(layer: nnx.RMSNorm) -> jax.Array:
    assert layer.scale is not None
    return layer.scale[...]


def _liger_norm(layer: nnx.RMSNorm, x: jax.Array) -> jax.Array:
    return functional.rms_norm(x, _scale(layer), epsilon=layer.epsilon, casting="llama")


def _liger_add_norm(layer: nnx.RMSNorm, x: jax.Array, residual: jax.Array) -> tuple[jax.Array, jax.Array]:
    return functional.add_rms_norm(x, residual, _scale(layer), epsilon=layer.epsilon, casting="llama")


def _liger_loss(x: jax.Array, kernel: jax.Array, layout: KernelLayout, labels: jax.Array) -> jax.Array:
    loss = functional.linear_softmax_cross_entropy(
        x, kernel, labels, kernel_layout=layout, ignore_index=IGNORE_INDEX, reduction="mean"
    )
    assert isinstance(loss, jax.Array)  # Nothing beside the loss was asked for.
    return loss


def _plain_norm(layer: nnx.RMSNorm, x: jax.Array) -> jax.Array:
    return layer(x)


def _plain_add_norm(layer: nnx.RMSNorm, x: jax.Array, residual: jax.Array) -> tuple[jax.Array, jax.Array]:
    total = residual + x
    return layer(total), total


def _plain_rope(q: jax.Array, k: jax.Array, cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, jax.Array]:
    cos, sin = cos[..., None, :], sin[..., None, :]

    def rotate(x: jax.Array) -> jax.Array:
        first, second = jnp.split(x, 2, axis=-1)
        return x * cos + jnp.concatenate([-second, first], axis=-1) * sin

    return rotate(q), rotate(k)


def _plain_gate(gate: jax.Array, up: jax.Array) -> jax.Array:
    return nnx.silu(gate) * up


def _plain_loss(x: jax.Array, kernel: jax.Array, layout: KernelLayout, labels: jax.Array) -> jax.Array:
    logits = _project(x, kernel, layout).astype(jnp.float32)
    counts = labels != IGNORE_INDEX
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counts, labels, 0))
    return jnp.where(counts, losses, 0.0).sum() / jnp.maximum(counts.sum(), 1)


LAYERS: dict[str, LayerFunctions] = {
    "liger": LayerFunctions(
        Embed, RMSNorm, _liger_norm, _liger_add_norm, functional.apply_rope, functional.swiglu, _liger_loss
    ),
    "plain": LayerFunctions(
        nnx.Embed, nnx.RMSNorm, _plain_norm, _plain_add_norm, _plain_rope, _plain_gate, _plain_loss
    ),
}
"""The layers that a decoder can be built on, by name."""


def _check_rank(name: str, array: jax.Array) -> None:
    if array.ndim != 2:
        raise ValueError(f"Decoder: {name} has shape {array.shape}; expected (batch, seq).")


def _project(x: jax.Array, kernel: jax.Array, layout: KernelLayout) -> jax.Array:
    return x @ (kernel if layout == "hv" else kernel.T)


def _linear(
    config: DecoderConfig, inputs: int, outputs: int, bias: bool, dtype: Any, rngs: nnx.Rngs
) -> nnx.Linear:
    init = nnx.initializers.normal(config.initializer_range)
    return nnx.Linear(inputs, outputs, use_bias=bias, param_dtype=dtype, kernel_init=init, rngs=rngs)


def _norm(config: DecoderConfig, functions: LayerFunctions, dtype: Any, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return functions.norm_class(config.hidden_size, epsilon=config.rms_norm_eps, param_dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
    """Causal attention with grouped key and value heads."""

    def __init__(
        self, config: DecoderConfig, window: int | None, functions: LayerFunctions, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        self.window = window
        self.functions = functions
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = _linear(config, config.hidden_size, width, config.qkv_bias, dtype, rngs)
        self.k_proj = _linear(config, config.hidden_size, kv_width, config.qkv_bias, dtype, rngs)
        self.v_proj = _linear(config, config.hidden_size, kv_width, config.qkv_bias, dtype, rngs)
        self.o_proj = _linear(config, width, config.hidden_size, config.o_bias, dtype, rngs)

    def __call__(self, x: jax.Array, cos: jax.Array, sin: jax.Array, mask: jax.Array | None) -> jax.Array:
        """x: (batch, seq, hidden); cos, sin: (batch or 1, seq, head_dim); mask: (batch, 1, seq, seq), or None."""
        q, k, v = (
            projection(x).reshape(*x.shape[:-1], heads, self.head_dim)
            for projection, heads in (
                (self.q_proj, self.num_heads),
                (self.k_proj, self.num_kv_heads),
                (self.v_proj, self.num_kv_heads),
            )
        )
        q, k = self.functions.rope(q, k, cos, sin)
        # A window of w tokens holds the token itself and w - 1 before it.
        window = None if self.window is None else (self.window - 1, 0)
        y = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, local_window_size=window)
        return self.o_proj(y.reshape(*x.shape[:-1], self.num_heads * self.head_dim))


class MLP(nnx.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer, arXiv:2002.05202)."""

    def __init__(self, config: DecoderConfig, functions: LayerFunctions, dtype: Any, rngs: nnx.Rngs) -> None:
        self.functions = functions
        inner, outer = config.intermediate_size, config.hidden_size
        self.gate_proj = _linear(config, outer, inner, config.mlp_bias, dtype, rngs)
        self.up_proj = _linear(config, outer, inner, config.mlp_bias, dtype, rngs)
        self.down_proj = _linear(config, inner, outer, config.mlp_bias, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (batch, seq, hidden)."""
        return self.down_proj(self.functions.gate(self.gate_proj(x), self.up_proj(x)))


class DecoderLayer(nnx.Module):
    """Attention and MLP, each with its norm in front and the residual stream around it."""

    def __init__(
        self, config: DecoderConfig, window: int | None, functions: LayerFunctions, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        self.input_layernorm = _norm(config, functions, dtype, rngs)
        self.self_attn = Attention(config, window, functions, dtype, rngs)
        self.post_attention_layernorm = _norm(config, functions, dtype, rngs)
        self.mlp = MLP(config, functions, dtype, rngs)


class Decoder(nnx.Module):
    """A causal language model.

    >>> from liger_jax.nnx.decoder import Decoder
    >>> model = Decoder.from_pretrained("folder", dtype="bfloat16")             # doctest: +SKIP
    >>> loss, gradients = nnx.value_and_grad(Decoder.loss)(model, tokens, tokens)  # doctest: +SKIP
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        layers: Literal["liger", "plain"] = "liger",
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Build a decoder with random weights.

        Args:
            config: shapes and choices.
            layers: "liger" for this package's functions, "plain" for Flax's own layers and optax's loss. They agree to
                rounding: in 16-bit dtypes "liger" rounds where Hugging Face's Llama does, and Flax's norm rounds once.
            dtype: of the parameters, and of the computation.
            rngs: the stream `params` draws the weights.

        Raises:
            ValueError: for another value of `layers`.
        """
        if layers not in LAYERS:
            raise ValueError(f"layers must be one of {', '.join(LAYERS)}; received {layers!r}.")
        self.config = config
        self.functions = LAYERS[layers]
        self.embed_tokens = self.functions.embed_class(
            config.vocab_size,
            config.hidden_size,
            param_dtype=dtype,
            embedding_init=nnx.initializers.normal(config.initializer_range),
            rngs=rngs,
        )
        self.layers = nnx.List(
            [DecoderLayer(config, window, self.functions, dtype, rngs) for window in config.windows]
        )
        self.norm = _norm(config, self.functions, dtype, rngs)
        if not config.tie_word_embeddings:
            self.lm_head = _linear(config, config.hidden_size, config.vocab_size, False, dtype, rngs)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, layers: Literal["liger", "plain"] = "liger", dtype: Any = None
    ) -> Decoder:
        """Load what `save_pretrained` of a Hugging Face model wrote: config.json and safetensors, sharded or not.

        Args:
            folder: the folder it was saved to.
            layers: see `Decoder`.
            dtype: of the parameters, and of the computation; None takes that of the embedding in the file.

        Raises:
            FileNotFoundError: if there is no config.json or no safetensors.
            ValueError: if the configuration is one that the decoder does not compute, or if tensors are missing, left
                over or of another shape; the message names them.
        """
        config = DecoderConfig.from_hf(checkpoint.read_config(folder))
        files = checkpoint.Checkpoint(folder)
        dtype = files.dtype() if dtype is None else dtype
        # Shapes only: no weights are made beside those of the file.
        abstract = nnx.eval_shape(lambda: cls(config, layers=layers, dtype=dtype, rngs=nnx.Rngs(0)))
        graph, state = nnx.split(abstract)
        return nnx.merge(graph, files.fill(state, tied=config.tie_word_embeddings))

    def __call__(
        self, tokens: jax.Array, positions: jax.Array | None = None, segments: jax.Array | None = None
    ) -> jax.Array:
        """Logits of the next token.

        Args:
            tokens: (batch, seq) integers.
            positions: (batch, seq) or (1, seq), for the rotary embedding; by default 0, 1, 2, ...
            segments: (batch, seq) integers; a token attends to its own segment only. For packed sequences, with
                positions that start anew, and for padding, as a segment of its own.

        Returns:
            (batch, seq, vocab), in the parameters' dtype.

        Raises:
            ValueError: tokens that are not (batch, seq).
        """
        kernel, layout = self.head()
        return _project(self.hidden(tokens, positions, segments), kernel, layout)

    def loss(
        self,
        tokens: jax.Array,
        labels: jax.Array,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        """Mean cross entropy of the labels, as Hugging Face's causal language models define it.

        Args:
            tokens: (batch, seq) integers.
            labels: (batch, seq) integers; the label of a token is compared with the prediction made one token before.
                So `labels` is `tokens`, with -100 where a token does not count.
            positions: see `__call__`.
            segments: see `__call__`. A segment's first token is predicted from the one before: mask its label.

        Returns:
            A float32 scalar; 0, with zero gradients, if no label counts.

        Raises:
            ValueError: tokens or labels that are not (batch, seq).
        """
        _check_rank("labels", labels)
        # The labels move, not the hidden states: nothing large is copied, and the last token has no label.
        shifted = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE_INDEX)
        kernel, layout = self.head()
        return self.functions.loss(self.hidden(tokens, positions, segments), kernel, layout, shifted)

    def head(self) -> tuple[jax.Array, KernelLayout]:
        """The head's kernel and its layout, as `liger_jax.linear_logprobs` and its kin take them."""
        if self.config.tie_word_embeddings:
            return self.embed_tokens.embedding[...], "vh"
        return self.lm_head.kernel[...], "hv"

    def hidden(
        self, tokens: jax.Array, positions: jax.Array | None = None, segments: jax.Array | None = None
    ) -> jax.Array:
        """The final, normalised hidden states (batch, seq, hidden), which `head` makes logits of.

        For losses other than `loss`. Arguments and errors are those of `__call__`.
        """
        _check_rank("tokens", tokens)
        x = self.embed_tokens(tokens)
        if self.config.pad_token_id is not None:
            padding = (tokens == self.config.pad_token_id)[..., None]
            x = jnp.where(padding, jax.lax.stop_gradient(x), x)
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None]
        cos, sin = self._rotary_tables(positions, x.dtype)
        mask = None if segments is None else (segments[:, None, :, None] == segments[:, None, None, :])

        # Each residual sum is followed by a norm, the next layer's or the last one; so the two are one function.
        following = [layer.input_layernorm for layer in self.layers[1:]] + [self.norm]
        y = self.functions.norm(self.layers[0].input_layernorm, x)
        for layer, norm in zip(self.layers, following, strict=True):
            y, x = self.functions.add_norm(
                layer.post_attention_layernorm, layer.self_attn(y, cos, sin, mask), x
            )
            y, x = self.functions.add_norm(norm, layer.mlp(y), x)
        return y

    def _rotary_tables(self, positions: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """cos and sin (batch or 1, seq, head_dim): angles in float32, rounded to the computation's dtype at the end."""
        angles = positions[..., None].astype(jnp.float32) * self.config.rope.frequencies(self.config.head_dim)
        angles = jnp.concatenate([angles, angles], axis=-1)
        return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)

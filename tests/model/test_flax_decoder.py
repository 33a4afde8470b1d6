"""The Flax decoder against the Hugging Face model whose safetensors it loads."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from liger_jax.nnx import apply_liger_kernel, checkpoint
from liger_jax.nnx.decoder import Decoder
from liger_jax.nnx.decoder_config import DecoderConfig

VOCAB, SEQUENCE = 211, 33

SHAPES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Far from the usual 0.02, so that attention and the gates do something and a wrong one shows.
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _llama(**changes: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**SHAPES, "tie_word_embeddings": False, **changes}))


def _qwen2(**changes: Any) -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**{**SHAPES, "tie_word_embeddings": True, **changes}))


def _mistral(**changes: Any) -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**{**SHAPES, "head_dim": 10, "sliding_window": 7, **changes}))


MODELS = {
    "llama": _llama,
    "llama3": lambda: _llama(rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True, head_dim=16),
    "qwen2": _qwen2,
    "qwen2-sliding": lambda: _qwen2(use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "mistral": _mistral,
    "mistral-full": lambda: _mistral(sliding_window=None, num_key_value_heads=6),
}


def _build(name: str) -> PreTrainedModel:
    """A model whose every parameter is random, biases and norms too (they start at 0 and 1)."""
    torch.manual_seed(0)
    model = MODELS[name]().float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """name -> (Hugging Face model, the folder it was saved to); each built once."""
    built: dict[str, tuple[PreTrainedModel, Path]] = {}

    def get(name: str) -> tuple[PreTrainedModel, Path]:
        if name not in built:
            model = _build(name)
            folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            built[name] = model, folder
        return built[name]

    return get


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and labels of which some do not count."""
    generator = np.random.default_rng(1)
    tokens = generator.integers(0, VOCAB, (2, SEQUENCE))
    labels = np.where(generator.random(tokens.shape) < 0.2, -100, tokens)
    return tokens, labels


forward = nnx.jit(Decoder.__call__)
loss_and_gradients = nnx.jit(nnx.value_and_grad(Decoder.loss))


def _relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("layers", ["liger", "plain"])
@pytest.mark.parametrize("name", MODELS)
def test_follows_hugging_face(
    saved: Any, batch: tuple[np.ndarray, np.ndarray], name: str, layers: Any
) -> None:
    reference, folder = saved(name)
    tokens, labels = batch
    reference.zero_grad()
    output = reference(input_ids=torch.tensor(tokens), labels=torch.tensor(labels))
    output.loss.backward()

    model = Decoder.from_pretrained(folder, layers=layers)
    logits = forward(model, tokens)
    loss, gradients = loss_and_gradients(model, tokens, labels)

    np.testing.assert_allclose(logits, output.logits.detach().numpy(), rtol=0, atol=1e-4)
    assert float(loss) == pytest.approx(output.loss.item(), abs=1e-5)
    flat = nnx.to_flat_state(gradients)
    theirs = {key: parameter.grad.numpy() for key, parameter in reference.named_parameters()}
    assert {checkpoint.hf_name(path) for path, _ in flat} == set(theirs)
    for path, gradient in flat:
        key = checkpoint.hf_name(path)
        ours = np.asarray(gradient[...])
        error = _relative(ours.T if checkpoint.is_transposed(path) else ours, theirs[key])
        assert error < 1e-4, f"{key}: {error}"


def test_layers_differ_in_what_runs(saved: Any, batch: tuple[np.ndarray, np.ndarray]) -> None:
    """Otherwise comparing the two would compare nothing: ours makes no logits of the whole batch."""
    _, folder = saved("llama")
    tokens, labels = batch
    programs = {
        layers: str(jax.make_jaxpr(Decoder.from_pretrained(folder, layers=layers).loss)(tokens, labels))
        for layers in ("liger", "plain")
    }
    assert "liger" in programs["liger"]
    assert "liger" not in programs["plain"]


def test_positions_and_segments_separate_packed_sequences(saved: Any) -> None:
    _, folder = saved("mistral")
    model = Decoder.from_pretrained(folder)
    generator = np.random.default_rng(2)
    first, second = generator.integers(0, VOCAB, (1, 12)), generator.integers(0, VOCAB, (1, 9))
    packed = forward(
        model,
        np.concatenate([first, second], axis=1),
        positions=np.concatenate([np.arange(12), np.arange(9)])[None],
        segments=np.repeat([0, 1], [12, 9])[None],
    )
    np.testing.assert_allclose(packed[:, :12], forward(model, first), rtol=0, atol=1e-5)
    np.testing.assert_allclose(packed[:, 12:], forward(model, second), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layers", ["liger", "plain"])
def test_no_label_counts(saved: Any, layers: Any) -> None:
    _, folder = saved("qwen2")
    tokens = np.zeros((1, 5), dtype=np.int32)
    model = Decoder.from_pretrained(folder, layers=layers)
    loss, gradients = loss_and_gradients(model, tokens, np.full_like(tokens, -100))
    assert float(loss) == 0.0
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("layers", ["liger", "plain"])
def test_bfloat16(saved: Any, batch: tuple[np.ndarray, np.ndarray], tmp_path: Path, layers: Any) -> None:
    """Loads as saved, and is no further from the float32 model than Hugging Face's bfloat16 model."""
    reference, _ = saved("llama")
    tokens, labels = batch
    narrow = _build("llama").bfloat16()
    narrow.save_pretrained(tmp_path)
    wide_logits = reference(torch.tensor(tokens)).logits.detach().numpy()
    their_error = _relative(narrow(torch.tensor(tokens)).logits.float().detach().numpy(), wide_logits)

    model = Decoder.from_pretrained(tmp_path, layers=layers)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("bfloat16")}
    logits = forward(model, tokens)
    assert logits.dtype == jnp.bfloat16
    assert _relative(np.asarray(logits, np.float32), wide_logits) < 1.5 * their_error
    assert loss_and_gradients(model, tokens, labels)[0].dtype == jnp.float32


def test_dtype_is_converted_on_request(saved: Any) -> None:
    _, folder = saved("qwen2")
    model = Decoder.from_pretrained(folder, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("bfloat16")}


def test_sharded_folder(saved: Any, tmp_path: Path) -> None:
    reference, folder = saved("llama")
    reference.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    whole, sharded = (nnx.state(Decoder.from_pretrained(path)) for path in (folder, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, whole, sharded)


def _rewrite(folder: Path, target: Path, change: Any) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_text((folder / "config.json").read_text())


def test_missing_and_unexpected_tensors_are_named(saved: Any, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.9.odd.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")

    _rewrite(saved("llama")[1], tmp_path, change)
    with pytest.raises(
        ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight; .*model\.layers\.9\.odd\.weight"
    ):
        Decoder.from_pretrained(tmp_path)


def test_wrong_shape_is_named(saved: Any, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()

    _rewrite(saved("llama")[1], tmp_path, change)
    with pytest.raises(ValueError, match=r"lm_head\.weight has the shape \(210, 48\), .*\(211, 48\)"):
        Decoder.from_pretrained(tmp_path)


def test_tied_head_in_the_file(saved: Any, tmp_path: Path) -> None:
    """A copy of the embedding is accepted as the head of a tied model; another head is not."""
    _, folder = saved("qwen2")

    def copy(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    def differ(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    _rewrite(folder, tmp_path, copy)
    Decoder.from_pretrained(tmp_path)
    _rewrite(folder, tmp_path, differ)
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        Decoder.from_pretrained(tmp_path)


def test_folder_without_weights(saved: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((saved("llama")[1] / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        Decoder.from_pretrained(tmp_path)


def test_random_weights_are_trainable() -> None:
    config = DecoderConfig.from_hf(LlamaConfig(**SHAPES))
    model = Decoder(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    tokens = np.arange(10)[None]
    assert float(model.loss(tokens, tokens)) == pytest.approx(np.log(VOCAB), rel=0.5)
    with pytest.raises(ValueError, match="liger, plain"):
        Decoder(config, layers="other", rngs=nnx.Rngs(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", ["liger", "plain"])
def test_empty_batch(layers: Any) -> None:
    model = Decoder(DecoderConfig.from_hf(LlamaConfig(**SHAPES)), layers=layers, rngs=nnx.Rngs(0))
    tokens = np.zeros((0, 10), np.int32)
    assert model(tokens).shape == (0, 10, VOCAB)
    loss, gradients = loss_and_gradients(model, tokens, tokens)
    assert float(loss) == 0.0
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))


def test_tokens_of_another_rank() -> None:
    model = Decoder(DecoderConfig.from_hf(LlamaConfig(**SHAPES)), rngs=nnx.Rngs(0))
    tokens = np.zeros(10, np.int32)
    with pytest.raises(ValueError, match=r"tokens has shape \(10,\); expected \(batch, seq\)"):
        model(tokens)
    with pytest.raises(ValueError, match=r"labels has shape \(10,\); expected \(batch, seq\)"):
        model.loss(tokens[None], tokens)


def test_conversion_counts_what_changes() -> None:
    config = DecoderConfig.from_hf(LlamaConfig(**SHAPES))
    tokens = np.arange(10)[None]
    plain = Decoder(config, layers="plain", rngs=nnx.Rngs(0))
    before = plain(tokens)
    converted = 2 * config.num_layers + 2  # the norms and the embedding
    assert apply_liger_kernel(plain) == converted
    program = str(jax.make_jaxpr(plain)(tokens))
    assert program.count("liger_forward") == converted
    np.testing.assert_allclose(plain(tokens), before, rtol=0, atol=1e-5)
    built = Decoder(config, layers="liger", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no module that could be replaced"):
        apply_liger_kernel(built)


@pytest.mark.parametrize("layers", ["liger", "plain"])
def test_pickle(layers: Any) -> None:
    model = Decoder(DecoderConfig.from_hf(LlamaConfig(**SHAPES)), layers=layers, rngs=nnx.Rngs(0))
    copy = nnx.merge(*pickle.loads(pickle.dumps(nnx.split(model))))
    tokens = np.arange(10)[None]
    np.testing.assert_array_equal(copy(tokens), model(tokens))


@pytest.mark.parametrize("name", MODELS)
def test_config_object_and_file_agree(saved: Any, name: str) -> None:
    model, folder = saved(name)
    raw = json.loads((folder / "config.json").read_text())
    assert DecoderConfig.from_hf(raw) == DecoderConfig.from_hf(model.config)


def test_config_of_transformers_4() -> None:
    new = LlamaConfig(**SHAPES, rope_parameters=LLAMA3)
    raw = {key: value for key, value in new.to_dict().items() if key != "rope_parameters"}
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    old = {**raw, "rope_theta": LLAMA3["rope_theta"], "rope_scaling": scaling}
    assert DecoderConfig.from_hf(old) == DecoderConfig.from_hf(new)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gemma2"}, "gemma2"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        ({"num_key_value_heads": 4}, "num_kv_heads"),
        ({"head_dim": 7}, "head_dim"),
    ],
)
def test_config_that_is_not_computed(change: dict[str, Any], named: str) -> None:
    raw = LlamaConfig(**SHAPES).to_dict()
    with pytest.raises(ValueError, match=named):
        DecoderConfig.from_hf({**raw, **change})


def test_config_lacks_a_setting() -> None:
    raw = LlamaConfig(**SHAPES).to_dict()
    del raw["intermediate_size"]
    with pytest.raises(ValueError, match="intermediate_size"):
        DecoderConfig.from_hf(raw)

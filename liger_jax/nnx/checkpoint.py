"""Read the weights of a Hugging Face model, as `save_pretrained` writes them, into a Flax NNX state."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import safe_open

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
LEGACY_BUFFER = ".rotary_emb.inv_freq"
"""A buffer that early Llama checkpoints saved; it follows from the configuration."""


def read_config(folder: str | Path) -> dict[str, Any]:
    """The contents of the folder's config.json."""
    config: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text())
    return config


def hf_name(path: Sequence[Any]) -> str:
    """The name that the Hugging Face model gives to the parameter at `path` of the decoder's state.

    The decoder's modules bear Hugging Face's names; only the last part differs, where Flax has names of its own.

    >>> hf_name(("layers", 0, "self_attn", "q_proj", "kernel"))
    'model.layers.0.self_attn.q_proj.weight'
    """
    *modules, leaf = (str(part) for part in path)
    leaf = "bias" if leaf == "bias" else "weight"
    return ".".join([*([] if modules[0] == "lm_head" else ["model"]), *modules, leaf])


def is_transposed(path: Sequence[Any]) -> bool:
    """Whether the parameter is stored transposed: Flax keeps a linear layer as (in, out), torch as (out, in)."""
    return path[-1] == "kernel"


class Checkpoint:
    """The tensors of a folder: of model.safetensors, or of the shards that model.safetensors.index.json lists.

    Raises:
        FileNotFoundError: if the folder holds neither.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        files = [safe_open(path, framework="np") for path in self._paths()]
        self._file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def _paths(self) -> list[Path]:
        if (self.folder / INDEX).exists():
            shards = set(json.loads((self.folder / INDEX).read_text())["weight_map"].values())
            return [self.folder / shard for shard in sorted(shards)]
        if (self.folder / SINGLE).exists():
            return [self.folder / SINGLE]
        raise FileNotFoundError(
            f"{self.folder} holds neither {SINGLE} nor {INDEX}; save the model there with save_pretrained()."
        )

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(self._file_of)

    def read(self, name: str) -> np.ndarray:
        """A tensor by name."""
        tensor: np.ndarray = self._file_of[name].get_tensor(name)
        return tensor

    def dtype(self) -> np.dtype:
        """The dtype of the embedding, or of the first tensor if there is none."""
        return self.read(EMBEDDING if EMBEDDING in self.names else min(self.names)).dtype

    def fill(self, state: nnx.State, *, tied: bool) -> nnx.State:
        """Read a state.

        Args:
            state: arrays or `jax.ShapeDtypeStruct`s at the decoder's paths.
            tied: whether the head is the embedding. Its tensor may then be absent from the file; where it is present,
                it has to equal the embedding.

        Returns:
            A state of the same structure and dtypes.

        Raises:
            ValueError: if a parameter has no tensor, a tensor no parameter, or one of them another shape; the names
                are in the message.
        """
        flat = nnx.to_flat_state(state)
        self._check_names({hf_name(path) for path, _ in flat}, tied)
        return nnx.from_flat_state([(path, self._read_variable(path, variable)) for path, variable in flat])

    def _check_names(self, wanted: set[str], tied: bool) -> None:
        found = {name for name in self.names if not name.endswith(LEGACY_BUFFER)}
        if tied and HEAD in found:
            found.remove(HEAD)
            if EMBEDDING in found and not np.array_equal(self.read(HEAD), self.read(EMBEDDING)):
                raise ValueError(
                    f"{self.folder}: tie_word_embeddings is set, but {HEAD} differs from {EMBEDDING}; "
                    "set tie_word_embeddings to false in config.json to load both."
                )
        problems = [
            f"{what} {', '.join(sorted(names))}"
            for what, names in (
                ("no tensor for the parameter", wanted - found),
                ("no parameter for the tensor", found - wanted),
            )
            if names
        ]
        if problems:
            raise ValueError(f"{self.folder} does not fit its config.json: {'; '.join(problems)}.")

    def _read_variable(self, path: Sequence[Any], variable: nnx.Variable) -> nnx.Variable:
        name, spec = hf_name(path), variable.get_value()
        value = self.read(name)
        expected = spec.shape[::-1] if is_transposed(path) else spec.shape
        if value.shape != expected:
            raise ValueError(
                f"{self.folder}: {name} has the shape {value.shape}, and config.json asks for {expected}."
            )
        array = jnp.asarray(value, dtype=spec.dtype)
        return variable.replace(array.T if is_transposed(path) else array)

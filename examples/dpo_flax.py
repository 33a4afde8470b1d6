"""Direct preference optimisation (arXiv:2305.18290) of a Flax NNX decoder.

    python -m examples.dpo_flax

The policy starts as the reference model. What it is to prefer is how the source of Python's standard library goes on,
over the same tokens in random order. `linear_logprobs` gives the log-probabilities of the answers without their logits.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from examples import preferences
from examples.curves import Report, read_options
from examples.settings import PRESETS
from liger_jax import linear_logprobs, losses
from liger_jax.nnx.decoder import Decoder
from liger_jax.nnx.decoder_config import DecoderConfig

SETTINGS = dataclasses.replace(PRESETS["tiny"], batch=16, learning_rate=1e-3)
BETA = 0.1


def answer_logps(model: Decoder, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """The log-probability of each token of an answer (sequences, tokens), 0 outside the mask."""
    kernel, layout = model.head()
    # Hidden states at a position predict the next token, so the ids move; the last position predicts none.
    ids = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))
    return linear_logprobs(
        model.hidden(tokens), kernel, ids, kernel_layout=layout, where=mask, differentiable=("logp",)
    ).logp


def arrays_of(pairs: preferences.Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Sequences, the chosen ones first, and the positions that predict their answers."""
    answers = np.concatenate([pairs.chosen, pairs.rejected])
    tokens = np.concatenate([np.tile(pairs.prompts, (2, 1)), answers], axis=1)
    prompt, whole = pairs.prompts.shape[1], tokens.shape[1]
    position = np.arange(whole)
    mask = (position >= prompt - 1) & (position < whole - 1)
    return tokens, np.broadcast_to(mask, tokens.shape)


def main() -> None:
    options = read_options(__doc__, steps=60)
    config = DecoderConfig.from_hf({"model_type": "llama", **SETTINGS.hf_config()})
    graph, parameters = nnx.split(Decoder(config, rngs=nnx.Rngs(SETTINGS.seed)))
    reference = parameters
    optimizer = optax.adam(SETTINGS.learning_rate)
    state = optimizer.init(parameters)

    def loss_of(parameters: Any, tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        policy, frozen = (answer_logps(nnx.merge(graph, p), tokens, mask) for p in (parameters, reference))
        found = losses.dpo(
            *losses.pair_logps(policy, mask, average=False),
            *losses.pair_logps(frozen, mask, average=False),
            beta=BETA,
        )
        accuracy = (found.chosen_rewards > found.rejected_rewards).mean()
        return found.loss.mean(), accuracy

    @functools.partial(jax.jit, donate_argnums=1)
    def step(parameters: Any, state: Any, tokens: jax.Array, mask: jax.Array) -> tuple[Any, ...]:
        (loss, accuracy), gradients = jax.value_and_grad(loss_of, has_aux=True)(parameters, tokens, mask)
        updates, state = optimizer.update(gradients, state, parameters)
        return loss, accuracy, optax.apply_updates(parameters, updates), state

    report = Report("DPO of a Flax decoder", options)
    curve = report.curve("policy")
    _, batches = preferences.make(SETTINGS, options.steps)
    for pairs in batches:
        loss, accuracy, parameters, state = step(parameters, state, *arrays_of(pairs))
        curve.add(float(loss), accuracy=float(accuracy))
    report.finish("dpo_flax.png")


if __name__ == "__main__":
    main()

"""The ops of the JAX frontend beside plain jnp (or optax) of the same meaning, one file per family."""

from __future__ import annotations

from jax_cases import (
    activations,
    divergences,
    embedding,
    gates,
    logprobs,
    losses,
    norms,
    position,
    quantised,
)
from jax_cases.case import IGNORED, Case, cotangents, gradients, labels, normal, root_mean_square, triton
from jax_cases.losses import (
    LOSS_OPTIONS,
    check_one_token,
    loss_options,
    plain_cross_entropy,
    plain_linear,
    plain_loss,
)
from jax_cases.norms import plain_add_rms_norm, plain_rms_norm
from jax_cases.position import plain_rope

CASES: tuple[Case, ...] = (
    *norms.CASES,
    *position.CASES,
    *gates.CASES,
    *activations.CASES,
    *embedding.CASES,
    *quantised.CASES,
    *losses.CASES,
    *logprobs.CASES,
    *divergences.CASES,
)


def named(name: str) -> Case:
    """The case of this name."""
    return next(case for case in CASES if case.name == name)


__all__ = [
    "CASES",
    "IGNORED",
    "LOSS_OPTIONS",
    "Case",
    "check_one_token",
    "cotangents",
    "gradients",
    "labels",
    "loss_options",
    "named",
    "normal",
    "plain_add_rms_norm",
    "plain_cross_entropy",
    "plain_linear",
    "plain_loss",
    "plain_rms_norm",
    "plain_rope",
    "root_mean_square",
    "triton",
]

"""Log-probabilities, on logits and fused with the linear layer."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

import liger_jax
from jax_cases.case import IGNORED, Case, labels, normal, triton

token = triton(liger_jax.token_logprobs)
linear = triton(liger_jax.linear_logprobs)


def plain_logprobs(
    logits: jax.Array,
    ids: jax.Array,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    differentiable: Sequence[str] = ("logp", "lse", "entropy"),
) -> liger_jax.LogProbs:
    z = logit_scale * logits
    z = (z if softcap is None else softcap * jnp.tanh(z / softcap)) / temperature
    valid = ids != IGNORED
    log_p = jax.nn.log_softmax(z, axis=-1)
    own = jnp.take_along_axis(log_p, jnp.where(valid, ids, 0)[..., None], -1)[..., 0]
    results = {
        "logp": own,
        "lse": jax.nn.logsumexp(z, axis=-1),
        "entropy": -jnp.sum(jnp.exp(log_p) * log_p, axis=-1),
    }
    return liger_jax.LogProbs(
        **{
            name: jnp.where(valid, value if name in differentiable else jax.lax.stop_gradient(value), 0)
            for name, value in results.items()
        }
    )


def plain_linear(
    x: jax.Array, kernel: jax.Array, ids: jax.Array, differentiable: Sequence[str]
) -> liger_jax.LogProbs:
    return plain_logprobs(x @ kernel, ids, differentiable=differentiable)


def _linear_case(
    name: str,
    differentiable: tuple[int, ...],
    results: tuple[str, ...],
    launches: tuple[int, int],
    keep: bool,
) -> Case:
    return Case(
        name,
        functools.partial(linear, differentiable=results, keep_logits=keep),
        functools.partial(plain_linear, differentiable=results),
        lambda rng, dtype: (
            normal(rng, (2, 5, 24), dtype),
            normal(rng, (24, 70), dtype, 0.3),
            labels(rng, (2, 5), 70),
        ),
        (True, False, True),
        differentiable,
        launches,
    )


EVERY = ("logp", "lse", "entropy")

CASES: tuple[Case, ...] = (
    Case(
        "logprobs",
        token,
        plain_logprobs,
        lambda rng, dtype: (normal(rng, (3, 4, 131), dtype, 3.0), labels(rng, (3, 4), 131)),
        (True, True),
        (0,),
        (1, 2),
    ),
    Case(
        "logprobs-options",
        functools.partial(token, temperature=0.7, softcap=5.0, logit_scale=1.5),
        functools.partial(plain_logprobs, temperature=0.7, softcap=5.0, logit_scale=1.5),
        lambda rng, dtype: (normal(rng, (6, 50), dtype, 3.0), labels(rng, (6,), 50)),
        (True, True),
        (0,),
        (1, 2),
    ),
    _linear_case("linear_logprobs", (0, 1), EVERY, (1, 2), keep=False),
    _linear_case("linear_logprobs-kept", (0, 1), EVERY, (1, 2), keep=True),
    # One more launch forward for the gradient of the logits, one backward to scale that of x.
    _linear_case("linear_logprobs-prepared", (0,), ("logp",), (1, 3), keep=False),
)

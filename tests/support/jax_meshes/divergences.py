"""Divergences of divided tokens."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding

import liger_jax
from jax_meshes.mesh import KINDS, P, check_nothing_gathered, close, on_mesh, reduced
from liger import interpret
from liger_jax.vjp import apply
from liger_triton import linear_jsd


def every_divergence() -> None:
    """Losses of tokens, and means over all devices' tokens, of which one device has none that counts."""
    rng = np.random.default_rng(3)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    student, teacher = draw(4, 4, 20), draw(4, 4, 20)
    log_q, p = jax.nn.log_softmax(student), jax.nn.softmax(teacher)
    x, kernel, bias = draw(4, 4, 6), draw(6, 20), draw(20)
    teacher_x, teacher_kernel = draw(4, 4, 10), draw(10, 20)
    where = jnp.asarray(rng.random((4, 4)) < 0.5).at[:2, :2].set(False).at[2:, 2:].set(True)
    labels = jnp.where(where, jnp.asarray(rng.integers(0, 20, (4, 4)), jnp.int32), -100)
    tokens = P("data", "model")
    distilled = {"temperature": 2.0, "soft_weight": 0.4, "hard_weight": 0.6}

    def linear(x: Any, kernel: Any, bias: Any, *others: Any, **options: Any) -> Any:
        return liger_jax.linear_jsd(x, kernel, *others, student_bias=bias, **distilled, **options)

    def recomputed(x: Any, kernel: Any, bias: Any, *others: Any, reduction: str, **more: Any) -> Any:
        chosen = {"none": "tokens", "mean": "mean_tokens"}[reduction]
        options = linear_jsd.Options(
            reduction=chosen, recompute=True, hard_weight=0.6, weight_layout="hv", chunk_bytes=400
        )
        return apply(linear_jsd.LINEAR_JSD, options, x, kernel, *others, bias, None, **more)[0]

    def masked(function: Any, **chosen: Any) -> Any:
        return lambda q, p, where, **options: function(q, p, where=where, **chosen, **options)

    logits = {"from_logits": True, "temperature": 2.0}
    of_two = (tokens, tokens, tokens)
    of_models = (x, kernel, bias, teacher_x, teacher_kernel, labels)
    of_layers = (tokens, P(), P(), tokens, P(), tokens)
    for function, arguments, specs, argnums in (
        (masked(liger_jax.kl_divergence), (log_q, p, where), of_two, (0, 1)),
        (masked(liger_jax.jsd, beta=0.3, **logits), (student, teacher, where), of_two, (0, 1)),
        (masked(liger_jax.jsd, beta=1.0), (log_q, jnp.log(p), where), of_two, (0,)),
        (liger_jax.total_variation, (jnp.exp(log_q), p), of_two[:2], (0,)),
        (linear, of_models, of_layers, (0, 1, 2)),
        (recomputed, of_models, of_layers, (0, 1, 2)),
    ):
        for reduction, implementation in (("none", "triton"), ("mean", "triton"), ("mean", "xla")):
            if interpret.enabled() and implementation == "xla":
                continue
            chosen = functools.partial(function, reduction=reduction, implementation=implementation)
            check_divergence(chosen, arguments, specs, argnums, reduction, implementation)
    # A batch axis in front of the divided ones.
    gradients = jax.vmap(jax.grad(lambda s, t: jnp.sum(jnp.sin(liger_jax.jsd(s, t, **logits))), (0, 1)))
    for kind in KINDS:
        ours, program = on_mesh(kind, gradients, (student, teacher), [P(None, ("data", "model"))] * 2)
        close(ours, jax.jit(gradients)(student, teacher), f"jsd vmap {kind}")
        check_nothing_gathered(program, kind, "triton", 0, f"jsd vmap {kind}")


def check_divergence(
    function: Any, arguments: Any, specs: Any, argnums: Any, reduction: str, implementation: str
) -> None:
    weighed = 1.0 + jnp.arange(16.0).reshape(4, 4)

    def both(*arguments: Any) -> Any:
        def total(*a: Any) -> Any:
            loss = function(*a)
            return jnp.sum(loss * weighed) if reduction == "none" else loss, loss

        return jax.value_and_grad(total, argnums, has_aux=True)(*arguments)

    expected = jax.jit(both)(*arguments)
    shared = {arguments[i].size for i in argnums if specs[i] == P()}
    for kind in KINDS:
        message = f"{function} {kind}"
        ours, program = on_mesh(kind, both, arguments, specs)
        close(ours, expected, message)
        check_nothing_gathered(program, kind, implementation, 0, message)
        if interpret.enabled() and kind == AxisType.Auto:
            continue
        # Losses and counts, and the gradients of what all devices have.
        assert {n for n in reduced(program) if n > 3} == shared, (message, reduced(program))
        (_, loss), gradients = ours
        divided = [g for i, g in zip(argnums, gradients, strict=True) if specs[i] != P()]
        for array in (loss, *divided) if reduction == "none" else divided:
            whole = NamedSharding(array.sharding.mesh, P("data", "model"))
            assert array.sharding.is_equivalent_to(whole, array.ndim), (message, array.sharding)

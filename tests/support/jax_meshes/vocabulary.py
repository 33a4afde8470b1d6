"""Cross entropy and log-probabilities of a divided vocabulary."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import liger_jax
from jax_meshes.mesh import KINDS, P, check_nothing_gathered, close, mesh_of, on_mesh
from liger import interpret

EXTRAS: dict[str, Any] = {"return_z_loss": True, "return_accuracy": True, "return_predicted": True}


def every_loss() -> None:
    """Every option somewhere, with every reduction; in the interpreter, with all of them."""
    rng = np.random.default_rng(2)
    n, hidden, vocab = 8, 6, 20
    x = jnp.asarray(rng.standard_normal((4, n // 4, hidden)), jnp.float32)
    kernel = jnp.asarray(0.7 * rng.standard_normal((hidden, vocab)), jnp.float32)
    bias = jnp.asarray(rng.standard_normal(vocab), jnp.float32)
    labels = jnp.asarray(rng.integers(0, vocab, (4, n // 4)), jnp.int32).at[1, 0].set(-100)
    weights = jnp.asarray(rng.uniform(0.5, 2, vocab), jnp.float32)
    every = {
        "label_smoothing": 0.2,
        "z_loss": 0.05,
        "softcap": 3.0,
        "logit_scale": 0.7,
        "class_weights": weights,
    }
    for reduction, options, implementation in (
        ("none", every | EXTRAS, "triton"),
        ("none", every | EXTRAS, "xla"),
        ("sum", every, "triton"),
        ("mean", {}, "triton"),
        ("mean", every | EXTRAS, "triton"),
    ):
        if interpret.enabled() and implementation == "xla":
            continue
        chosen = {**options, "reduction": reduction, "implementation": implementation}
        check_vocabulary(x, kernel, bias, labels, chosen)
    check_logprobs(x, kernel, bias, labels)


def check_vocabulary(x: Any, kernel: Any, bias: Any, labels: Any, options: dict[str, Any]) -> None:
    def fused(x: Any, kernel: Any, bias: Any, labels: Any, **more: Any) -> Any:
        return liger_jax.linear_softmax_cross_entropy(x, kernel, labels, bias=bias, **options, **more)

    def tied(x: Any, kernel: Any, bias: Any, labels: Any, **more: Any) -> Any:
        return liger_jax.linear_softmax_cross_entropy(
            x, kernel.T, labels, bias=bias, kernel_layout="vh", **options, **more
        )

    def logits(z: Any, labels: Any, **more: Any) -> Any:
        return liger_jax.softmax_cross_entropy_with_integer_labels(z, labels, **options, **more)

    z = x @ kernel + bias
    linear_specs = (P("data"), P(None, "model"), P("model"), P("data"))
    for name, function, arguments, specs in (
        ("fused", fused, (x, kernel, bias, labels), linear_specs),
        ("tied", tied, (x, kernel, bias, labels), linear_specs),
        ("logits", logits, (z, labels), (P("data", None, "model"), P("data"))),
    ):
        if name == "tied" and options["reduction"] != "sum":
            continue
        argnums = tuple(range(len(arguments) - 1))

        def both(*arguments: Any, function: Any = function, argnums: Any = argnums) -> Any:
            def total(*a: Any) -> Any:
                results = function(*a)
                loss = results if isinstance(results, jax.Array) else results.loss + results.z_loss
                return jnp.sum(loss * (1.0 if loss.ndim == 0 else jnp.arange(1.0, 5.0)[:, None])), results

            return jax.value_and_grad(total, argnums, has_aux=True)(*arguments)

        expected = jax.jit(both)(*arguments)
        for kind in KINDS:
            message = f"{name} {options} {kind}"
            ours, program = on_mesh(kind, both, arguments, specs)
            close(ours, expected, message)
            check_nothing_gathered(program, kind, options["implementation"], labels.size, message)
        expected = of_halves(function, arguments, specs, argnums)
        for check in (False, True):
            close(
                of_shard_map(check, function, arguments, specs, argnums),
                expected,
                f"{name} {options} shard_map {check}",
            )


def total_loss(results: Any) -> jax.Array:
    return jnp.sum(results if isinstance(results, jax.Array) else results.loss)


def of_halves(function: Any, arguments: Any, specs: Any, argnums: Any) -> Any:
    """Loss and gradients where each half of the tokens has a loss of its own, on one device."""

    def halves(*arguments: Any) -> Any:
        parts = [
            jnp.split(a, 2) if s[:1] == ("data",) else (a, a) for a, s in zip(arguments, specs, strict=True)
        ]
        return sum(total_loss(function(*half)) for half in zip(*parts, strict=True))

    return jax.jit(jax.value_and_grad(halves, argnums))(*arguments)


def of_shard_map(check: bool, function: Any, arguments: Any, specs: Any, argnums: Any) -> Any:
    """Loss and gradients around a shard_map that divides tokens and vocabulary."""
    mapped = functools.partial(
        jax.shard_map,
        lambda *a: jax.lax.psum(total_loss(function(*a, vocab_axis="model")), "data"),
        in_specs=specs,
        out_specs=P(),
        check_vma=check,
    )
    with mesh_of(AxisType.Auto) as mesh:
        return jax.jit(jax.value_and_grad(mapped(mesh=mesh), argnums))(*arguments)


def check_logprobs(x: Any, kernel: Any, bias: Any, ids: Any) -> None:
    chosen = {"softcap": 3.0, "logit_scale": 0.7, "temperature": 1.3, "return_predicted": True}

    def combined(results: liger_jax.LogProbs) -> jax.Array:
        return jnp.sum(jnp.cos(results.logp) + 0.3 * results.lse**2 + results.entropy * results.logp)

    def fused(x: Any, kernel: Any, bias: Any, ids: Any, **more: Any) -> Any:
        return combined(liger_jax.linear_logprobs(x, kernel, ids, bias=bias, **chosen, **more))

    def kept(x: Any, kernel: Any, bias: Any, ids: Any, **more: Any) -> Any:
        return fused(x, kernel, bias, ids, keep_logits=True, **more)

    def frozen(x: Any, kernel: Any, bias: Any, ids: Any, **more: Any) -> Any:
        results = liger_jax.linear_logprobs(
            x, kernel, ids, bias=bias, differentiable=("logp",), **chosen, **more
        )
        return jnp.sum(jnp.cos(results.logp))

    def logits(z: Any, ids: Any, **more: Any) -> Any:
        return combined(liger_jax.token_logprobs(z, ids, **chosen, **more))

    linear_specs = (P("data"), P(None, "model"), P("model"), P("data"))
    for name, function, arguments, specs, argnums in (
        ("fused", fused, (x, kernel, bias, ids), linear_specs, (0, 1, 2)),
        ("kept", kept, (x, kernel, bias, ids), linear_specs, (0, 1, 2)),
        ("frozen", frozen, (x, kernel, bias, ids), linear_specs, (0,)),
        ("logits", logits, (x @ kernel + bias, ids), (P("data", None, "model"), P("data")), (0,)),
    ):
        both = jax.value_and_grad(function, argnums)
        expected = jax.jit(both)(*arguments)
        for kind in KINDS:
            message = f"logprobs {name} {kind}"
            ours, program = on_mesh(kind, both, arguments, specs)
            close(ours, expected, message)
            check_nothing_gathered(program, kind, "triton", ids.size, message)
        for check in (False, True):
            mapped = functools.partial(
                jax.shard_map,
                lambda *a, f=function: jax.lax.psum(f(*a, vocab_axis="model"), "data"),
                in_specs=specs,
                out_specs=P(),
                check_vma=check,
            )
            with mesh_of(AxisType.Auto) as mesh:
                ours = jax.jit(jax.value_and_grad(mapped(mesh=mesh), argnums))(*arguments)
            close(ours, expected, f"logprobs {name} shard_map {check}")

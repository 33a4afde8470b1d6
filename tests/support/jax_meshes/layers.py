"""A norm and the elementwise ops of an MLP, closely: how results are divided, divided features, vmap."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding

import liger_jax
from jax_meshes.mesh import KINDS, P, close, collectives, mesh_of, on_mesh
from liger_jax.nnx import Decoder
from liger_jax.nnx.decoder_config import DecoderConfig


def norm() -> None:
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.standard_normal((8, 4, 64)), jnp.float32) for _ in range(2))
    scale = jnp.asarray(rng.standard_normal(64), jnp.float32)

    def function(x: jax.Array, scale: jax.Array, g: jax.Array) -> Any:
        y, pull_back = jax.vjp(liger_jax.rms_norm, x, scale)
        return y, pull_back(g)

    expected = jax.jit(function)(x, scale, g)
    for kind in KINDS:
        for spec in (P("data"), P(("data", "model")), P("data", "model"), P("data", None, "model"), P()):
            message = f"{kind} {spec}"
            (y, (dx, dscale)), program = on_mesh(kind, function, (x, scale, g), (spec, P(), P(*spec[:2])))
            found = collectives(program)
            close((y, (dx, dscale)), expected, message)
            features_divided = len(spec) == 3
            assert bool(found["all-gather"]) == features_divided, (message, found)
            # The sum over the tokens, of the scale's gradient alone.
            assert found["all-reduce"] == (spec != P()), (message, found)
            whole = NamedSharding(y.sharding.mesh, P(*spec[:2]))
            assert y.sharding.is_equivalent_to(whole, 3), (message, y.sharding)


def features() -> None:
    """Elementwise ops of an MLP whose features are divided, as between a column- and a row-parallel layer."""
    rng = np.random.default_rng(2)
    gate, up, g = (jnp.asarray(rng.standard_normal((4, 8, 64)), jnp.float32) for _ in range(3))
    functions: dict[str, Any] = {
        "swiglu": liger_jax.swiglu,
        "geglu": liger_jax.geglu,
        "relu_squared": lambda gate, up: liger_jax.relu_squared(gate) * up,
    }
    for name, op in functions.items():

        def function(gate: jax.Array, up: jax.Array, g: jax.Array, op: Any = op) -> Any:
            y, pull_back = jax.vjp(op, gate, up)
            return y, pull_back(g)

        expected = jax.jit(function)(gate, up, g)
        for kind in KINDS:
            for spec in (P("data", None, "model"), P(None, None, ("data", "model")), P("data")):
                message = f"{name} {kind} {spec}"
                ours, program = on_mesh(kind, function, (gate, up, g), (spec,) * 3)
                close(ours, expected, message)
                assert not any(collectives(program).values()), (message, collectives(program))
                for array in jax.tree.leaves(ours):
                    whole = NamedSharding(array.sharding.mesh, spec)
                    assert array.sharding.is_equivalent_to(whole, 3), (message, array.sharding)
    # One feature axis alone, each device with its own part; and gate and up in one array, which is read as a whole.
    vector = gate[0, 0]
    packed = lambda gate, up, g: liger_jax.swiglu(jnp.concatenate((gate, up)))  # noqa: E731
    for kind in KINDS:
        for each in (lambda gate, up, g: liger_jax.swiglu(gate, up), packed):
            ours, _ = on_mesh(kind, each, (vector, up[0, 0], vector), (P("model"),) * 3)
            close(ours, liger_jax.swiglu(vector, up[0, 0]), f"one axis {kind}")


def transforms() -> None:
    rng = np.random.default_rng(1)
    x, scale = jnp.asarray(rng.standard_normal((4, 6, 16)), jnp.float32), jnp.ones(16)
    loss = lambda x, scale: jnp.sum(jnp.cos(liger_jax.rms_norm(x, scale)))  # noqa: E731
    expected = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (0, None)))(x, scale)
    for kind in KINDS:
        ours, _ = on_mesh(
            kind, jax.vmap(jax.grad(loss, (0, 1)), (0, None)), (x, scale), (P(None, "data"), P())
        )
        close(ours, expected, f"vmap {kind}")
    # Without a mesh around the call: the arrays alone say that they are divided.
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    placed = jax.device_put(x, NamedSharding(mesh, P("d"))), jax.device_put(scale, NamedSharding(mesh, P()))
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*placed).compile()
    close(compiled(*placed), jax.grad(loss, (0, 1))(x, scale), "no mesh")
    assert collectives(compiled.as_text())["all-gather"] == 0
    close(jax.grad(loss, (0, 1))(*placed), jax.grad(loss, (0, 1))(x, scale), "no mesh, no jit")


def eager() -> None:
    """Calls one by one, without jit: on a mesh, and on one device's part of it."""
    rng = np.random.default_rng(3)
    x, kernel = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((4, 6, 16), (16, 30)))
    labels = jnp.arange(24).reshape(4, 6)
    norm = liger_jax.rms_norm
    loss = lambda x: liger_jax.linear_softmax_cross_entropy(x, kernel, labels)  # noqa: E731
    gradient = jax.grad(lambda x: jnp.sum(jnp.cos(norm(x))))
    expected = norm(x), loss(x), gradient(x)
    for kind in KINDS:
        with mesh_of(kind) as mesh:
            for spec in (P(), P("data"), P("data", "model")):
                placed = jax.device_put(x, NamedSharding(mesh, spec))
                close((norm(placed), loss(placed), gradient(placed)), expected, f"eager {kind} {spec}")
                on_a_part = jax.shard_map(norm, in_specs=spec, out_specs=spec)
                close(on_a_part(placed), expected[0], f"eager shard_map {kind} {spec}")
            with jax.disable_jit():
                close(norm(placed), expected[0], f"without jit {kind}")


def mapped() -> None:
    """jax.vmap over an axis that is divided; on Explicit axes by XLA alone."""
    rng = np.random.default_rng(4)
    x, scale = jnp.asarray(rng.standard_normal((4, 6, 16)), jnp.float32), jnp.ones(16)
    loss = lambda x, scale: jnp.sum(jnp.cos(liger_jax.rms_norm(x, scale)))  # noqa: E731
    functions = {
        "forward": jax.vmap(liger_jax.rms_norm, (0, None)),
        "gradients of examples": jax.vmap(jax.grad(loss, (0, 1)), (0, None)),
        "gradient of a sum": jax.grad(lambda x, s: jax.vmap(loss, (0, None))(x, s).sum(), (0, 1)),
    }
    for name, function in functions.items():
        expected = jax.jit(function)(x, scale)
        for kind in KINDS:
            ours, _ = on_mesh(kind, function, (x, scale), (P("data"), P()))
            close(ours, expected, f"vmap over a divided axis, {name}, {kind}")
    with (
        mesh_of(AxisType.Explicit) as mesh,
        pytest.raises(ValueError, match=r"that the mesh divides explicitly \(data\)"),
    ):
        placed = jax.device_put(x, NamedSharding(mesh, P("data")))
        jax.vmap(lambda x: liger_jax.rms_norm(x, implementation="triton"))(placed)


def decoder() -> None:
    config = DecoderConfig.from_hf(LLAMA)
    model = Decoder(config, rngs=nnx.Rngs(0))
    tokens = jnp.arange(32).reshape(4, 8) % config.vocab_size
    expected = model.loss(tokens, tokens)
    with mesh_of(AxisType.Explicit) as mesh:
        model = Decoder(config, rngs=nnx.Rngs(0))
        placed = jax.device_put(tokens, NamedSharding(mesh, P("data")))
        close(model.loss(placed, placed), expected, "decoder")


LLAMA = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
}

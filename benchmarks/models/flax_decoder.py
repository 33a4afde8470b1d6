"""The same for this package's Flax decoder, on plain Flax layers and on its own."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.models import data
from benchmarks.models.case import Case, Result
from benchmarks.models.shapes import SHAPES
from benchmarks.rows import Spread
from liger_jax.nnx.decoder import Decoder
from liger_jax.nnx.decoder_config import DecoderConfig

LEARNING_RATE = 1e-3
WARM_UP = 3
PRODUCT = 8192


def on_gpu() -> bool:
    """Whether the device is a GPU."""
    return bool(jax.default_backend() == "gpu")


class Training:
    """A decoder, its optimiser's state and the compiled step."""

    def __init__(self, case: Case) -> None:
        shape = SHAPES[case.model]
        config = DecoderConfig.from_hf(shape.config() | {"model_type": shape.family, "rms_norm_eps": 1e-6})
        layers = "liger" if case.arm == "flax-ours" else "plain"
        if case.dtype == "float32":  # JAX multiplies in TensorFloat-32 on a GPU unless told otherwise
            jax.config.update("jax_default_matmul_precision", "highest")

        def make() -> Decoder:
            return Decoder(config, layers=layers, dtype=jnp.dtype(case.dtype), rngs=nnx.Rngs(0))  # type: ignore[arg-type]

        graph, _ = nnx.split(nnx.eval_shape(make))
        self.parameters = jax.jit(lambda: nnx.split(make())[1])()
        optimizer = optax.adamw(LEARNING_RATE) if case.optimizer == "adamw" else optax.sgd(LEARNING_RATE)
        self.state = jax.jit(optimizer.init)(self.parameters)

        # The old weights and state are given up, so that the new ones take their place in memory.
        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(
            parameters: Any, state: Any, tokens: jax.Array, labels: jax.Array
        ) -> tuple[jax.Array, Any, Any]:
            def loss_of(parameters: Any) -> jax.Array:
                return nnx.merge(graph, parameters).loss(tokens, labels)

            loss, gradients = jax.value_and_grad(loss_of)(parameters)
            updates, state = optimizer.update(gradients, state, parameters)
            return loss, optax.apply_updates(parameters, updates), state

        self.case = case
        self.use(data.uniform(0, case.batch, case.sequence, shape.vocab))
        self.compiled = step.lower(self.parameters, self.state, self.tokens, self.labels).compile()

    def use(self, tokens: np.ndarray) -> None:
        """Train on these tokens (batch, sequence) from now on."""
        self.tokens = jnp.asarray(tokens, jnp.int32)
        self.labels = jnp.asarray(data.labels_of(tokens, self.case.valid), jnp.int32)

    def step(self) -> jax.Array:
        """Forward, backward, update; the loss before the update, perhaps not computed yet."""
        loss, self.parameters, self.state = self.compiled(
            self.parameters, self.state, self.tokens, self.labels
        )
        return loss

    def finished(self) -> Any:
        """Make a step; all that it computes."""
        return self.step(), self.parameters

    def peak_gb(self) -> float:
        """The step's arguments, results and temporaries as XLA has laid them out; aliased ones count once."""
        plan: Any = self.compiled.memory_analysis()
        total = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
        return round((total - plan.alias_size_in_bytes) / 1e9, 3)

    def flops(self) -> float:
        """As `benchmarks.models.arms.model_flops` counts them."""
        shape = SHAPES[self.case.model]
        wide = shape.heads * shape.head_dim
        layer = shape.hidden * (2 * wide + 2 * shape.kv_heads * shape.head_dim + 3 * shape.intermediate)
        weights = shape.layers * layer + shape.hidden * shape.vocab
        pairs = self.case.sequence**2 / 2
        return 6.0 * weights * self.case.tokens + 12 * pairs * wide * self.case.batch * shape.layers


def measured(case: Case) -> Result:
    """The result of a case of a step. Each step is waited for; XLA has no host cost between its kernels."""
    start = time.perf_counter()
    before = product_tflops()
    training = Training(case)
    losses = [float(training.step())]
    setup = time.perf_counter() - start
    for _ in range(WARM_UP - 1):
        jax.block_until_ready(training.step())
    times = samples(training.finished, case.steps)
    peak, flops = training.peak_gb(), training.flops()
    del training
    return Result(
        case,
        step=Spread.of(times),
        wall_ms=round(sum(times) / len(times), 3),
        peak_gb=peak,
        tflops=flops / 1e12,
        product_tflops=(before, product_tflops()),
        losses=tuple(losses),
        setup_s=round(setup, 1),
    )


def curve(case: Case) -> Result:
    """The result of a case of a curve."""
    training = Training(case)
    losses = []
    for tokens in data.walks(0, case.steps, case.batch, case.sequence, SHAPES[case.model].vocab):
        training.use(tokens)
        losses.append(training.step())
    return Result(case, losses=tuple(float(loss) for loss in losses))


def samples(call: Any, count: int) -> list[float]:
    """Milliseconds of each call, its results waited for."""
    found = []
    for _ in range(count):
        start = time.perf_counter()
        jax.block_until_ready(call())
        found.append((time.perf_counter() - start) * 1e3)
    return found


def product_tflops() -> float:
    """Rate of a matrix product in bfloat16, the median of several."""
    size = PRODUCT if on_gpu() else 256
    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
    chain = 10

    @jax.jit
    def products(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, chain, lambda _, x: (x @ b) * jnp.bfloat16(size**-0.5), a)

    jax.block_until_ready(products(a, b))
    times = Spread.of(samples(lambda: products(a, b), 5))
    return chain * 2 * size**3 / (times.median / 1e3) / 1e12

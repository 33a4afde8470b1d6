"""The demo's runs with the Flax decoder: on plain Flax layers, and on this package's."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from examples.messages import Job, read_job, tell, train
from liger.interpret import enabled
from liger_jax.nnx.decoder import Decoder

KERNEL_CALL = 'custom_call_target="triton_kernel_call'
"""How a Triton kernel stands in a compiled program."""


class Trainer:
    """A decoder, its optimiser, and the compiled step."""

    def __init__(self, job: Job) -> None:
        settings = job.settings
        if settings.dtype == "float32":
            # On a GPU, JAX multiplies float32 matrices in TensorFloat-32 unless told otherwise; torch does not.
            jax.config.update("jax_default_matmul_precision", "highest")
        model = Decoder.from_pretrained(
            job.model, layers="liger" if job.liger else "plain", dtype=settings.dtype
        )
        graph, self.parameters = nnx.split(model)
        optimizer = optax.adamw(
            lambda count: settings.learning_rate * settings.learning_rate_factor(count),
            b1=settings.betas[0],
            b2=settings.betas[1],
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )
        self.state = optimizer.init(self.parameters)

        # The old weights and state are given up, so that the new ones take their place in memory.
        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(parameters: Any, state: Any, tokens: jax.Array) -> tuple[jax.Array, Any, Any]:
            def loss_of(parameters: Any) -> jax.Array:
                return nnx.merge(graph, parameters).loss(tokens, tokens)

            loss, gradients = jax.value_and_grad(loss_of)(parameters)
            updates, state = optimizer.update(gradients, state, parameters)
            return loss, optax.apply_updates(parameters, updates), state

        self.compiled = step.lower(self.parameters, self.state, job.batches[0]).compile()

    def step(self, batch: np.ndarray) -> float:
        """Train on a batch (batch, sequence); returns the loss before the update."""
        loss, self.parameters, self.state = self.compiled(self.parameters, self.state, batch)
        jax.block_until_ready(self.parameters)
        return float(loss)

    def peak_bytes(self) -> int:
        """The step's arguments, results and temporaries, as XLA has laid them out; aliased ones count once."""
        plan: Any = self.compiled.memory_analysis()
        total = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
        return int(total - plan.alias_size_in_bytes)

    def kernel_calls(self) -> int:
        """Triton kernels in the compiled step."""
        return (self.compiled.as_text() or "").count(KERNEL_CALL)


def _path(trainer: Trainer, job: Job) -> str:
    device = jax.devices()[0]
    name = "the CPU" if device.platform == "cpu" else device.device_kind
    if not job.liger:
        return f"XLA on {name}"
    if device.platform != "cpu":
        if not trainer.kernel_calls():
            raise RuntimeError(
                "The decoder is on this package's layers, but no Triton kernel is in its step."
            )
        return f"{trainer.kernel_calls()} kernel launches a step on {name}"
    return "kernels in Triton's interpreter" if enabled() else "reference on the CPU"


def main() -> None:
    """Run the job of the command line."""
    job = read_job()
    trainer = Trainer(job)
    path = _path(trainer, job)
    result = train(job, trainer.step)
    tell(
        result={
            **result,
            "path": path,
            "peak_bytes": trainer.peak_bytes(),
            "peak_measure": "compiled memory_analysis()",
        }
    )


if __name__ == "__main__":
    main()

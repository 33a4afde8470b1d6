"""The demo's runs with Hugging Face's model: as it is, and patched."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from examples.live_memory import LiveMemory
from examples.messages import Job, read_job, tell, train
from examples.settings import Settings

MEASURED_STEP = 1
"""The step whose memory is measured: the second, since the optimiser's state is made in the first."""


def save_initial_model(settings: Settings, folder: Path) -> int:
    """Save the weights that all runs start from; returns their number."""
    disable_progress_bar()
    torch.manual_seed(settings.seed)
    model = LlamaForCausalLM(LlamaConfig(**settings.hf_config()))
    model.to(getattr(torch, settings.dtype)).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


class Trainer:
    """A Hugging Face model and its optimiser."""

    def __init__(self, job: Job) -> None:
        self.settings = settings = job.settings
        self.device = torch.device("cuda" if settings.device == "gpu" else "cpu")
        self.model = LlamaForCausalLM.from_pretrained(job.model, dtype=getattr(torch, settings.dtype))
        torch.nn.Module.to(self.model, self.device).train()
        self.report = ""
        if job.liger:
            from liger_torch.hf import apply_liger_kernel

            self.report = str(apply_liger_kernel(self.model))
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, settings.learning_rate_factor)
        self.steps = 0
        self.peak_bytes = 0
        self.kernel_launches = 0

    def step(self, batch: np.ndarray) -> float:
        """Train on a batch (batch, sequence); returns the loss before the update."""
        tokens = torch.from_numpy(batch).long().to(self.device)
        measured = self.steps == MEASURED_STEP
        self.steps += 1
        if not measured:
            return self._update(tokens)
        if self.device.type == "cpu":
            with LiveMemory(self._state(tokens)) as memory:
                loss = self._update(tokens)
            self.peak_bytes = memory.peak
            return loss
        torch.cuda.reset_peak_memory_stats()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            loss = self._update(tokens)
        self.peak_bytes = torch.cuda.max_memory_allocated()
        ours = _kernel_names()
        self.kernel_launches = sum(event.count for event in profile.key_averages() if event.key in ours)
        return loss

    def _update(self, tokens: torch.Tensor) -> float:
        loss = self.model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def _state(self, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
        """What is in memory before a step: weights, optimiser state, batch."""
        yield tokens
        yield from self.model.parameters()
        yield from self.model.buffers()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def _kernel_names() -> set[str]:
    """The names of this package's Triton kernels that this process has imported."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("liger_triton")]
    return {
        value.fn.__name__
        for module in modules
        for value in vars(module).values()
        if hasattr(value, "fn") and hasattr(value, "run")
    }


def _path(trainer: Trainer, liger: bool) -> str:
    if trainer.device.type == "cuda":
        name = torch.cuda.get_device_name()
        if not liger:
            return f"torch on {name}"
        if not trainer.kernel_launches:
            raise RuntimeError("The model is patched, but no Triton kernel of this package ran in a step.")
        return f"{trainer.kernel_launches} kernel launches a step on {name}"
    if not liger:
        return "torch on the CPU"
    from liger.interpret import enabled

    return "kernels in Triton's interpreter" if enabled() else "reference on the CPU"


def main() -> None:
    """Run the job of the command line."""
    job = read_job()
    trainer = Trainer(job)
    result: dict[str, Any] = train(job, trainer.step)
    on_cpu = trainer.device.type == "cpu"
    tell(
        result={
            **result,
            "path": _path(trainer, job.liger),
            "patched": trainer.report,
            "peak_bytes": trainer.peak_bytes,
            "peak_measure": "live tensor storages" if on_cpu else "torch.cuda.max_memory_allocated",
        }
    )


if __name__ == "__main__":
    main()

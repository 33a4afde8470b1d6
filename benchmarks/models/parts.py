"""What `python -m benchmarks all` measures of whole models: the arguments of each process."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.models.case import FLAX_ARMS, TORCH_ARMS
from benchmarks.models.shapes import MODELS

SECONDS = 570
"""Of a part, which `all` ends after ten minutes."""


MEMORY_GB = {"llama-3.2-1b": 24, "llama-3-8b": 80, "qwen3-4b": 48, "gemma-2-2b": 40}
"""Of a GPU that has enough for the weights, gradients and optimiser states, and for a context that is soon computed."""


def _parts() -> Iterator[tuple[str, ...]]:
    torch_arms, flax_arms = ("--arms", ",".join(TORCH_ARMS)), ("--arms", ",".join(FLAX_ARMS))
    few = ("--arms", "eager,liger,ours")
    end = ("--seconds", str(SECONDS))
    for name in MODELS:
        yield (name, *torch_arms, "--tokens", "4096,8192", *end)
        yield (name, *torch_arms, "--tokens", "16384,32768", "--checkpointing", "on", *end)
        yield (name, *torch_arms, "--tokens", "8192", "--train", "lora", "--checkpointing", "off,on", *end)
        yield (name, *few, "--tokens", "8192", "--valid", "0.5", *end)
        for train, gb in (("full", MEMORY_GB[name]), ("lora", 24)):
            long = ("--what", "longest", "--checkpointing", "on", "--train", train, "--memory", str(gb))
            yield (name, *few, *long, *end)
    yield ("llama-3.2-1b", *flax_arms, "--tokens", "4096,8192", *end)
    yield ("--what", "curve", "--dtype", "bfloat16,float32", *end)


PARTS = tuple(_parts())

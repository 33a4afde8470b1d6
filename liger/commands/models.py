"""`python -m liger models`: the model families that have a function of their own, and what is patched in each.

Each family's own configuration is made small, its model built with random weights, and `explain` asked: what stands
here is what patching would do with the installed transformers.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

HELP = "the Hugging Face families, and what is patched in each"
PREFIX = "apply_liger_kernel_to_"

SMALL: dict[str, Any] = {
    "head_dim": 16,
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "moe_intermediate_size": 96,
    "num_attention_heads": 4,
    "num_experts": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "pad_token_id": None,
    "vocab_size": 131,
}
"""Sizes of the model that is built, as far as a family's configuration has them."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which families."""
    parser.add_argument("--filter", default="", metavar="TEXT", help="only families whose name contains this")


def run(options: argparse.Namespace) -> int:
    """Print the families; the exit status is 1 if there is none, or one cannot be built."""
    try:
        hf = importlib.import_module("liger_torch.hf")
    except ImportError as error:
        print(f"{error.name or error} is not installed; the families need torch and transformers")
        return 1
    families = [name.removeprefix(PREFIX) for name in hf.__all__ if name.startswith(PREFIX)]
    chosen = [family for family in families if options.filter in family]
    failed = 0
    for family in chosen:
        try:
            report = str(hf.explain(_small(family)))
        except Exception as error:
            report = f"cannot be built here: {error}"
            failed += 1
        print(f"{family}: {report}")
    print(f"{len(chosen)} families; apply_liger_kernel(model) takes any model, by what its modules compute")
    return 1 if failed or not chosen else 0


def _small(family: str) -> Any:
    transformers = importlib.import_module("transformers")
    known = transformers.AutoConfig.for_model(family).to_dict()
    sizes = {name: value for name, value in SMALL.items() if known.get(name) is not None}
    return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **sizes))

"""Loading a causal language model and patching it in one call."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import AutoModelForCausalLM

from liger_torch.hf.patch import Parts, apply_liger_kernel

_ARGUMENTS = tuple(
    p.name for p in inspect.signature(apply_liger_kernel).parameters.values() if p.name != "model"
)


class AutoLigerKernelForCausalLM(AutoModelForCausalLM):
    """transformers' AutoModelForCausalLM, whose models come patched.

    Both methods take the arguments of `apply_liger_kernel` beside transformers' own.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """A pretrained model, patched; with `output_loading_info=True`, and what transformers says about loading."""
        options = _split(kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        apply_liger_kernel(loaded[0] if isinstance(loaded, tuple) else loaded, **options)
        return loaded

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> Any:
        """A model with random weights, patched."""
        options = _split(kwargs)
        model = super().from_config(config, **kwargs)
        apply_liger_kernel(model, **options)
        return model


def _split(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take out of `kwargs` what is meant for `apply_liger_kernel`, and check it before a checkpoint is read.

    `swiglu` and `geglu`, which the functions of the families have, are both `glu`: a model has one or the other.
    """
    for name in ("swiglu", "geglu"):
        if name in kwargs:
            kwargs["glu"] = kwargs.pop(name)
    options = {name: kwargs.pop(name) for name in _ARGUMENTS if name in kwargs}
    Parts(**{name: value for name, value in options.items() if name != "strict"})
    return options

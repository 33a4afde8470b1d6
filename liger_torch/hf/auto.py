"""Loading a causal language model and patching it in one call."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import AutoModelForCausalLM

from liger_torch.hf.families import asked_for
from liger_torch.hf.patch import Parts, apply_liger_kernel

_ARGUMENTS = tuple(
    p.name for p in inspect.signature(apply_liger_kernel).parameters.values() if p.name != "model"
)


class AutoLigerKernelForCausalLM(AutoModelForCausalLM):
    """transformers' AutoModelForCausalLM, whose models come patched.

    Both methods take the arguments of `apply_liger_kernel` beside transformers' own, with `swiglu` or `geglu` for `glu`
    and `experts`, as the functions of the families have them.
    """

    # The calls below go to AutoModelForCausalLM itself and not to super(): with code that comes with a checkpoint, the
    # name of the class that is called is what transformers looks up in the configuration.

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """A pretrained model, patched; with `output_loading_info=True`, and what transformers says about loading."""
        options = _split(kwargs)
        loaded = AutoModelForCausalLM.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        apply_liger_kernel(loaded[0] if isinstance(loaded, tuple) else loaded, **options)
        return loaded

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> Any:
        """A model with random weights, patched."""
        options = _split(kwargs)
        model = AutoModelForCausalLM.from_config(config, **kwargs)
        apply_liger_kernel(model, **options)
        return model


def _split(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take out of `kwargs` what is meant for `apply_liger_kernel`, and check it before a checkpoint is read."""
    gates: dict[str, bool] = {name: kwargs.pop(name) for name in ("swiglu", "geglu") if name in kwargs}
    options = {name: kwargs.pop(name) for name in _ARGUMENTS if name in kwargs}
    if gates:
        if "glu" in options:
            raise TypeError(
                f"AutoLigerKernelForCausalLM: glu and {' and '.join(gates)} are the same; give one of them."
            )
        asked = asked_for("AutoLigerKernelForCausalLM", gates)
        options = {"glu": asked.glu, "experts": asked.experts, **options}
    Parts(**{name: value for name, value in options.items() if name != "strict"})
    return options

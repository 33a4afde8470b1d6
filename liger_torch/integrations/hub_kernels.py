"""This package's layers for transformers' own way of exchanging layers, `model.set_use_kernels(True)`.

    from liger_torch.integrations import hub_kernels

    hub_kernels.register()
    model = AutoModelForCausalLM.from_pretrained(..., use_kernels=True)

Normally that downloads kernels from the Hugging Face Hub. What is registered here is in memory instead, for RMSNorm and
the rotation of q and k. transformers goes by a name that model files give their classes, and that name stands for
several forms; here each module is recognised as by `apply_liger_kernel`, gets the form that it has, and keeps its own
code if it has none that is known. `apply_liger_kernel` does more: gates, experts, the loss.

Needs the library `kernels`, in a version that transformers accepts.
"""

from __future__ import annotations

import functools
import importlib
import types
from typing import Any

import torch
from torch import nn

from liger_torch.hf import norms, probe
from liger_torch.hf.rope import Dispatcher
from liger_torch.hf.swap import original_class

DEVICES = ("cuda", "rocm", "cpu")


class RMSNorm(nn.Module):
    """What `kernels` puts in the place of a module's forward: `self` is the model's own module."""

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """The form of RMSNorm that the module has, by the kernel."""
        if "_liger_form" not in self.__dict__:
            with probe.probing():
                verdict = norms.recognise(self)
            self.__dict__["_liger_form"] = None if verdict is None else verdict.recipe
        cls: Any = original_class(self)
        result: torch.Tensor = _forward(cls, self._liger_form)(self, hidden_states)
        return result


@functools.cache
def _forward(cls: Any, recipe: Any) -> Any:
    return cls.forward if recipe is None else recipe.namespace(cls)["forward"]


class Rotation(nn.Module):
    """The same for the rotation of q and k: `self` is the module that `kernels` has made of the function."""

    def forward(
        self: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        unsqueeze_dim: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rotation that the function computes, by the kernel where it takes these shapes."""
        if "_liger_rotation" not in self.__dict__:
            self.__dict__["_liger_rotation"] = Dispatcher(types.MethodType(type(self).forward, self))
        rotated: tuple[torch.Tensor, torch.Tensor] = self._liger_rotation.rotate(
            q, k, cos, sin, unsqueeze_dim
        )
        return rotated


LAYERS: dict[str, type[nn.Module]] = {"RMSNorm": RMSNorm, "rotary_pos_emb": Rotation}
"""The names that transformers gives its classes and functions, and what is registered for each."""


class Repository:
    """What `kernels` loads a layer from; equal ones load the same."""

    def __init__(self, layer: type[nn.Module]) -> None:
        self.layer = layer

    def load(self) -> type[nn.Module]:
        """The layer."""
        return self.layer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Repository) and other.layer is self.layer

    def __hash__(self) -> int:
        return hash(self.layer)

    def __str__(self) -> str:
        return f"liger_torch: {self.layer.__name__}"


class Registration:
    """The layers among those of transformers; made by `register`."""

    def __init__(self, mapping: dict[str, dict[Any, Any]], modes: Any) -> None:
        self._mapping = mapping
        self._before: dict[tuple[str, str], Any] = {}
        for name, layer in LAYERS.items():
            devices = mapping.setdefault(name, {})
            for device in DEVICES:
                # Not for TORCH_COMPILE: modules are recognised at their first call.
                self._before[name, device] = devices.get(device, {})
                devices[device] = dict.fromkeys((modes.TRAINING, modes.INFERENCE), Repository(layer))

    def remove(self) -> None:
        """Give transformers its own layers back, for models that are set to use kernels from now on.

        Does nothing the second time. Where there was no layer for a device, an empty entry stays: `kernels` never
        forgets one.
        """
        for (name, device), before in self._before.items():
            self._mapping[name][device] = before
        self._before = {}


def register() -> Registration:
    """Let `set_use_kernels(True)`, in this process, take RMSNorm and rotations from this package.

    Returns:
        What `remove()` ends it.

    Raises:
        RuntimeError: transformers does not accept the `kernels` that is installed, or has no such mechanism.
    """
    import transformers
    from transformers.utils import import_utils

    hub = importlib.import_module("transformers.integrations.hub_kernels")
    mapping = getattr(hub, "get_kernel_mapping_transformers", None)
    if mapping is None:
        wanted = "a version of transformers from 5.17 on"
        if hasattr(import_utils, "KERNELS_MIN_VERSION"):
            lowest, highest = import_utils.KERNELS_MIN_VERSION, import_utils.KERNELS_MAX_VERSION
            wanted = f"the library `kernels`, at least {lowest} and older than {highest}"
        raise RuntimeError(
            f"transformers {transformers.__version__} has no kernels to exchange; it needs {wanted}."
        )
    return Registration(mapping(), importlib.import_module("kernels").Mode)

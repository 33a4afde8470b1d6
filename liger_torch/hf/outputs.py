"""What a patched model returns: without logits, with a token accuracy."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from transformers.utils.generic import ModelOutput

from liger_torch.hf.lazy import LazyLogits


def without_logits(output: Any) -> Any:
    """An output without the entry `logits`."""
    return type(output)(**{name: value for name, value in _fields(output).items() if name != "logits"})


def settled(output: Any, *, keep_logits: bool) -> Any:
    """An output, at any depth, with None for logits that were not computed, or with the logits."""
    if isinstance(output, LazyLogits):
        return output.computed() if keep_logits or output.is_computed else None
    settle = functools.partial(settled, keep_logits=keep_logits)
    if isinstance(output, ModelOutput):
        return type(output)(**{name: settle(value) for name, value in _fields(output).items()})
    if type(output) in (tuple, list):
        return type(output)(map(settle, output))
    if type(output) is dict:
        return {name: settle(value) for name, value in output.items()}
    return output


def with_token_accuracy(output: Any, accuracy: torch.Tensor | None) -> Any:
    """An output of the same class with one more field, as tools expect that take outputs apart and build them anew."""
    cls: Any = type(output)
    if not isinstance(output, ModelOutput):
        raise ValueError(
            f"return_token_accuracy is True, but the model returns a {cls.__name__}, which has no place for it; leave "
            "it out."
        )
    return _class_with_token_accuracy(cls)(**_fields(output), token_accuracy=accuracy)


def _fields(output: Any) -> dict[str, Any]:
    """Not its items: up to transformers 4 a field that is set later is none of them."""
    return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}


@torch.compiler.assume_constant_result
def _class_with_token_accuracy(cls: Any) -> type[Any]:
    return _made_class(cls)


@functools.lru_cache
def _made_class(cls: Any) -> type[Any]:
    made = dataclasses.make_dataclass(cls.__name__, [("token_accuracy", Any, None)], bases=(cls,))
    made.__module__, made.__qualname__, made.__doc__ = cls.__module__, cls.__qualname__, cls.__doc__
    return made


def as_tuple(output: Any) -> tuple[Any, ...]:
    """As `return_dict=False`, with None in the place of logits that were not computed."""
    values = dict(output)
    if "logits" in values or "loss" not in values:
        return tuple(values.values())
    loss = values.pop("loss")
    return (loss, None, *values.values())

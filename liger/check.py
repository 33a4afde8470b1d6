"""Argument checks whose messages name the argument, what was received and what to do instead."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from liger.launch import Spec

KERNEL_FLOATS = ("float32", "bfloat16", "float16")
"""Floating dtypes of the kernels. Arithmetic is fp32 inside, so float64 is left to the reference on a CPU."""

REFERENCE_FLOATS = (*KERNEL_FLOATS, "float64")
LABEL_DTYPES = ("int64", "int32")


def renamed(message: str, names: Mapping[str, str]) -> str:
    """An error's message with a frontend's names of arguments in place of the op's.

    A name that is a word of English too ("scale", "weight") is one where the message tells what it is or has, or whose
    shape or axis it tells of.
    """
    if not names:
        return message
    return re.sub(
        r"(?<![\w'])[^\W\d]\w*",
        lambda word: names.get(word[0], word[0]) if _is_argument(message, word) else word[0],
        message,
    )


def _is_argument(message: str, word: re.Match[str]) -> bool:
    return (
        "_" in word[0]
        or message.startswith((" is ", " has "), word.end())
        or message.endswith(("shape of ", "axis of ", "tokens of ", "pass "), 0, word.start())
    )


def options(op: str, given: Any) -> None:
    """Raise unless every option is of the kind that its dataclass declares, and finite if it is a number.

    They are compiled into kernels: a number that is an array would be compiled anew for every one of them.
    """
    for argument, kind, optional in _declared(given.__class__):
        value = getattr(given, argument)
        if value is None and optional:
            continue
        if kind == "bool":
            if not isinstance(value, bool):
                raise TypeError(f"{op}: {argument} is {value!r}; it must be True or False.")
        elif kind == "int":
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{op}: {argument} is {value!r}; it must be an int.")
        elif kind == "float":
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{op}: {argument} is {value!r}; it must be a number, an int or a float.")
            if not math.isfinite(value):
                raise ValueError(f"{op}: {argument} is {value}; it must be a finite number.")


@functools.cache
def _declared(options: type[Any]) -> tuple[tuple[str, str, bool], ...]:
    """(name, kind, whether it may be None) of the options of an op."""
    return tuple(
        (field.name, kind, "None" in rest)
        for field in dataclasses.fields(options)
        for kind, *rest in (str(field.type).split(" | "),)
    )


def number(op: str, argument: str, value: object) -> None:
    """Raise TypeError for what is clearly no number."""
    if value is None or isinstance(value, str):
        raise TypeError(f"{op}: {argument} is {value!r}; it must be a number.")


def one_of(op: str, argument: str, value: object, allowed: Iterable[object]) -> None:
    """Raise ValueError unless the option's value is one of those allowed."""
    allowed = tuple(dict.fromkeys(allowed))
    if value not in allowed:
        raise ValueError(f"{op}: {argument} is {value!r}; choose one of {', '.join(map(repr, allowed))}.")


def dtype(op: str, argument: str, spec: Spec, allowed: Iterable[str]) -> None:
    """Raise TypeError unless the array has one of the dtypes allowed."""
    allowed = tuple(allowed)
    if spec.dtype not in allowed:
        raise TypeError(f"{op}: {argument} has dtype {spec.dtype}; cast it to one of {', '.join(allowed)}.")


def same_dtype(op: str, argument: str, spec: Spec, other_name: str, other: Spec) -> None:
    """Raise TypeError unless two arrays have the same dtype."""
    if spec.dtype != other.dtype:
        raise TypeError(
            f"{op}: {argument} has dtype {spec.dtype} but {other_name} has {other.dtype}; cast one to the other's."
        )


def shape(op: str, argument: str, spec: Spec, expected: tuple[int, ...], meaning: str) -> None:
    """Raise ValueError unless the array has the expected shape; `meaning` says where that shape comes from."""
    if tuple(spec.shape) != tuple(expected):
        raise ValueError(
            f"{op}: {argument} has shape {tuple(spec.shape)}; expected {tuple(expected)} ({meaning})."
        )


def rank_at_least(op: str, argument: str, spec: Spec, rank: int, meaning: str) -> None:
    """Raise ValueError if the array has fewer axes than the op needs."""
    if len(spec.shape) < rank:
        raise ValueError(
            f"{op}: {argument} has shape {tuple(spec.shape)}; it needs at least {rank} axes ({meaning})."
        )


def not_empty(op: str, argument: str, spec: Spec, axis: int, meaning: str) -> None:
    """Raise ValueError if an axis that the op works along has no entries."""
    if spec.shape[axis] == 0:
        raise ValueError(
            f"{op}: {argument} has shape {tuple(spec.shape)}; its {meaning} axis must have at least one entry."
        )


def in_range(op: str, argument: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless low <= value <= high."""
    number(op, argument, value)
    if not low <= value <= high:
        if low >= 0 and high == sys.float_info.max:
            raise ValueError(f"{op}: {argument} is {value}; it must be a finite number of at least {low}.")
        raise ValueError(f"{op}: {argument} is {value}; it must lie between {low} and {high}.")


def positive(op: str, argument: str, value: float) -> None:
    """Raise ValueError unless value > 0."""
    number(op, argument, value)
    if not value > 0:
        raise ValueError(f"{op}: {argument} is {value}; it must be positive.")

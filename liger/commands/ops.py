"""`python -m liger ops`: every op, its options and kernels, and the functions of both frontends that lead to it.

All of it is read from the code: the list of ops, the catalogue's launches, and what the frontends' public functions and
layers refer to.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import pkgutil
import types
from collections.abc import Iterator
from typing import Any

from liger.device import DEFAULT
from liger.op import Op, Operand, Output
from liger.plan import passes

HELP = "the ops, their options and kernels, and the functions and layers that serve them"
FRONTENDS = {"PyTorch": "liger_torch", "JAX": "liger_jax"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which ops."""
    parser.add_argument("--filter", default="", metavar="TEXT", help="only ops whose name contains this")


def run(options: argparse.Namespace) -> int:
    """Print the ops; the exit status is 1 if none matched."""
    from liger_triton.ops import OPS

    chosen = [op for op in OPS if options.filter in op.name]
    served = {frontend: _served(package) for frontend, package in FRONTENDS.items()}
    for op in chosen:
        print(op.name)
        for title, text in _lines(op, served):
            print(f"  {title:20}{text}")
    print(f"{len(chosen)} ops")
    return 0 if chosen else 1


def _lines(op: Op, served: dict[str, dict[str, frozenset[Op]] | str]) -> Iterator[tuple[str, str]]:
    from liger_triton.catalogue import FAMILIES

    yield "operands", ", ".join(map(_operand, op.operands))
    yield "outputs", ", ".join(map(_output, op.outputs))
    yield "options", ", ".join(map(_option, dataclasses.fields(op.options))) or "none"
    calls = [call for family in FAMILIES for call in family() if call.op is op]
    forward, backward = _kernels(calls)
    yield "kernels, forward", ", ".join(forward) or "none in the catalogue"
    yield "kernels, backward", ", ".join(backward) or "none"
    yield "catalogue", f"{len(calls)} calls"
    for frontend, found in served.items():
        if isinstance(found, str):
            yield frontend, found
            continue
        yield frontend, ", ".join(name for name, ops in found.items() if op in ops) or "nothing"
    yield "JAX by default", _default(op)


def _operand(operand: Operand) -> str:
    marks: list[str] = [operand.role]
    if operand.optional:
        marks.append("optional")
    if not operand.differentiable:
        marks.append("no gradient")
    return f"{operand.name} ({', '.join(marks)})"


def _output(output: Output) -> str:
    return output.name if output.differentiable else f"{output.name} (no gradient)"


def _option(field: dataclasses.Field[Any]) -> str:
    return field.name if field.default is dataclasses.MISSING else f"{field.name}={field.default!r}"


def _kernels(calls: list[Any]) -> tuple[list[str], list[str]]:
    """Names of the kernels that the catalogue's calls launch in the forward and in the backward pass."""
    names: tuple[dict[str, None], dict[str, None]] = {}, {}
    for call in calls:
        planned = passes(call.op, call.options, call.operands, call.asked, DEFAULT, call.constant, call.parts)
        for found, part in zip(names, planned, strict=True):
            found |= dict.fromkeys(launch.name for launch, _ in part)
    return list(names[0]), list(names[1])


def _default(op: Op) -> str:
    try:
        return str(importlib.import_module("liger_jax.implementations").DEFAULTS[op.name])
    except ImportError as error:
        return _missing(error)


def _missing(error: ImportError) -> str:
    return f"{error.name} is not installed" if error.name else str(error)


# ------------------------------------------------------------------------------ what leads to which op


def _served(package: str) -> dict[str, frozenset[Op]] | str:
    """The public functions and classes of a frontend and the ops that their code refers to; or why it has none here."""
    try:
        frontend = importlib.import_module(package)
    except ImportError as error:
        return _missing(error)
    found: dict[str, frozenset[Op]] = {}
    for info in pkgutil.iter_modules(frontend.__path__):
        if info.name.startswith("_"):
            continue
        try:
            module = importlib.import_module(f"{package}.{info.name}")
        except ImportError:  # a part for a library that is not installed
            continue
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if isinstance(thing, types.FunctionType | type):
                ops = frozenset(_referred(thing, package, set()))
                if ops:
                    found[f"{info.name}.{name}"] = ops
    return found


def _referred(thing: Any, package: str, seen: set[int]) -> Iterator[Op]:
    """The ops that a function, or a class's own methods, refer to, directly or through functions of the package."""
    thing = inspect.unwrap(thing)
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Op):
        yield thing
    elif isinstance(thing, type) and thing.__module__.startswith(package):
        for base in thing.__mro__:
            if base.__module__.startswith(package):
                for member in vars(base).values():
                    if isinstance(member, types.FunctionType):
                        yield from _referred(member, package, seen)
    elif isinstance(thing, types.FunctionType) and thing.__module__.startswith(package):
        for code in _codes(thing.__code__):
            for name in code.co_names:
                value = thing.__globals__.get(name)
                if isinstance(value, types.ModuleType):
                    for attribute in code.co_names:
                        yield from _referred(_of_module(value, attribute), package, seen)
                elif isinstance(value, Op | types.FunctionType):
                    yield from _referred(value, package, seen)


def _of_module(module: types.ModuleType, name: str) -> Any:
    value = vars(module).get(name)
    return value if isinstance(value, Op | types.FunctionType) else None


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code and that of the functions defined within."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)

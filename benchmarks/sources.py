"""What a row was measured from: a digest of the code that its op runs, by which an older row is told from a newer one.

Of an op it covers its module in `liger_triton`, all that this one imports of this repository, and the frontend's
functions, which choose its options; of an eager call on the host all that it runs of PyTorch's frontend, on JAX all of
that frontend but its layers; of a whole model the ops of its layers and all of the frontend; of what is known by no op,
everything. What interprets kernels runs on no GPU, and docstrings, comments and blank lines do not count. Nothing here
needs torch, JAX or Triton.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FOLDERS = ("liger", "kernels", "liger_torch", "liger_jax")
"""Where what is measured lies."""

EVERYTHING = "everything"
MODEL = "model"
ON_THE_HOST = ", on the host"
ON_JAX = ", on JAX"

FRONTENDS = {
    "": ("liger_torch/functional/*.py",),
    ON_THE_HOST: ("liger_torch/*.py", "liger_torch/functional/*.py"),
    ON_JAX: ("liger_jax/*.py", "liger_jax/functional/*.py"),
}
"""What of a frontend is run, by how the name of a family ends."""

OF_A_MODEL = {"": ("liger_torch/**/*.py",), ON_JAX: ("liger_jax/**/*.py",)}
"""The same of a model, whose layers are patched or the frontend's own."""

INTERPRETED = (
    "interpret.py",
    "interpreter_repairs.py",
    "interpreter_speed.py",
    "memory_access.py",
    "traffic.py",
)
"""Files of `liger` that run in the interpreter alone."""

_MODULES = {
    "cross_entropy": ("cross_entropy",),
    "divergence": ("forward kl", "jsd", "kl_div", "tvd"),
    "embedding": ("embedding",),
    "glu": ("geglu", "swiglu"),
    "group_norm": ("group_norm",),
    "int2_matmul": ("int2_matmul",),
    "layer_norm": ("add_layer_norm", "layer_norm"),
    "linear_cross_entropy": ("linear_cross_entropy",),
    "linear_jsd": ("linear_jsd",),
    "linear_logprobs": ("linear_logprobs",),
    "logprobs": ("logprobs",),
    "qk_norm_rope": ("qk_norm_rope",),
    "relu_squared": ("relu_squared",),
    "rms_norm": ("add_rms_norm", "rms_norm"),
    "rope": ("mrope", "rope", "rope_at_positions"),
    "softmax": ("softmax", "sparsemax"),
}
"""Of `liger_triton`, with the words by which the entries of its ops begin."""

OPS: dict[str, tuple[str, ...]] = {
    **{op: (f"liger_triton.{module}",) for module, ops in _MODULES.items() for op in ops},
    "dpo": ("liger_torch.chunked_loss.preference", "liger.losses.preference"),
    "grpo": ("liger_torch.chunked_loss.policy", "liger.losses.policy"),
    "launch": (),  # torch's own
    MODEL: tuple(
        f"liger_triton.{module}"
        for module in ("glu", "layer_norm", "linear_cross_entropy", "qk_norm_rope", "rms_norm", "rope")
    ),
}
"""The modules from which what a row needs is found, by the words by which its entry's name begins."""


def op(row: Any) -> str:
    """The op of a row; everything if it is known by none."""
    if hasattr(row, "case"):
        return MODEL
    entry = getattr(row, "entry", "")
    return next((op for op in OPS if f"{entry} ".startswith(f"{op} ")), EVERYTHING)


def family(row: Any) -> str:
    """What is measured together: the op of a row, on JAX, on the host where its entry is the op alone; everything."""
    entry, found = getattr(row, "entry", ""), op(row)
    if found == EVERYTHING:
        return found
    if found == MODEL:
        return found + (ON_JAX if row.case.arm.startswith("flax-") else "")
    return found + (ON_THE_HOST if entry == found else ON_JAX if entry.endswith(", JAX") else "")


@functools.cache
def digest(name: str, root: Path = ROOT) -> str:
    """Of the code of a family."""
    where = next((end for end in (ON_THE_HOST, ON_JAX) if name.endswith(end)), "")
    op = name.removesuffix(where)
    modules = (*OPS.get(op, ()), *(("liger_torch.autograd",) if where == ON_THE_HOST else ()))
    if op in OPS and all(_file(module, root) for module in modules):
        frontend = (OF_A_MODEL if op == MODEL else FRONTENDS)[where]
        found = _imported(modules, root) | {path for files in frontend for path in root.glob(files)}
    else:
        found = {path for folder in FOLDERS for path in (root / folder).rglob("*.py")}
    found = {path for path in found if path.parent != root / "liger" or path.name not in INTERPRETED}
    # Geometry that was measured is read by one module of all.
    found |= {table for path in found for table in path.parent.glob("*.json")}
    code = hashlib.sha256()
    for path in sorted(found):
        code.update(path.relative_to(root).as_posix().encode() + _code(path).encode())
    return code.hexdigest()[:12]


def _imported(modules: Iterable[str], root: Path) -> set[Path]:
    """The files of these modules and of all that they import of this repository when they are imported."""
    found: set[Path] = set()
    left = [path for module in modules if (path := _file(module, root))]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            left += _imports(path, root)
    return found


def _file(module: str, root: Path) -> Path | None:
    place = module.replace(".", "/")
    candidates = (root / f / end for f in (".", "kernels") for end in (f"{place}.py", f"{place}/__init__.py"))
    return next((path for path in candidates if path.is_file()), None)


@functools.cache
def _imports(path: Path, root: Path) -> tuple[Path, ...]:
    return tuple(_found_in(path, root))


def _found_in(path: Path, root: Path) -> Iterator[Path]:
    if path.name == "__init__.py":  # of a package that exports more than was asked for
        return
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:  # of a module, or of something in one
            if found := _file(name, root) or _file(name.rpartition(".")[0], root):
                yield found


@functools.cache
def _code(path: Path) -> str:
    """What runs of a file: of Python, all but docstrings, comments and blank lines."""
    text = path.read_text()
    if path.suffix != ".py":
        return text
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            for row in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())

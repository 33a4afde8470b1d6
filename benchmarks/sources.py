"""What a row was measured from: a digest of the code that its op runs, by which an older row is told from a newer one.

Of an op it covers its module in `liger_triton` and all that this one imports of this repository; of an eager call on
the host, PyTorch's frontend as well; of what is known by no op, as whole models, everything. Docstrings, comments and
blank lines do not count. Nothing here needs torch, JAX or Triton.
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
ON_THE_HOST = ", on the host"

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
}
"""The modules from which what a row needs is found, by the words by which its entry's name begins."""


def family(row: Any) -> str:
    """What is measured together: the op of a row, on the host where its entry is the op alone; or everything."""
    entry = getattr(row, "entry", "")
    op = next((op for op in OPS if f"{entry} ".startswith(f"{op} ")), EVERYTHING)
    return f"{op}{ON_THE_HOST}" if entry == op else op


@functools.cache
def digest(name: str, root: Path = ROOT) -> str:
    """Of the code of a family."""
    op = name.removesuffix(ON_THE_HOST)
    modules = (*OPS.get(op, ()), *(("liger_torch.autograd",) if op != name else ()))
    if op in OPS and all(_file(module, root) for module in modules):
        found = _imported(modules, root)
    else:
        found = {path for folder in FOLDERS for path in (root / folder).rglob("*.py")}
    # Geometry that was measured is read by one module of all.
    found |= {table for path in found for table in path.parent.glob("*.json")}
    digest = hashlib.sha256()
    for path in sorted(found):
        digest.update(path.relative_to(root).as_posix().encode() + _code(path).encode())
    return digest.hexdigest()[:12]


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

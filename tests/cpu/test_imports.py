"""Each package imports where the other frameworks are not installed.

import-linter reads every import statement; these tests see what `import` really loads, in a process of its own from
which some packages are hidden as if they were not installed.
"""

from __future__ import annotations

import pytest
from without import run_without

JAX = ("jax", "jaxlib", "jax_triton", "flax", "optax")


@pytest.mark.parametrize(
    ("package", "hidden"),
    [
        pytest.param("liger", ("torch", *JAX, "triton", "transformers"), id="liger"),
        pytest.param("liger_triton", ("torch", *JAX, "transformers"), id="liger_triton"),
        pytest.param("liger_torch", (*JAX, "transformers"), id="liger_torch"),
        pytest.param("liger_jax", ("torch", "transformers"), id="liger_jax"),
    ],
)
def test_imports_without(package: str, hidden: tuple[str, ...]) -> None:
    run_without(hidden, f"import {package}")

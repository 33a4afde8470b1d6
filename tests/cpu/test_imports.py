"""Each package imports where the other frameworks are not installed.

import-linter reads every import statement; these tests see what `import` really loads, in a process of its own from
which some packages are hidden as if they were not installed.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = '''
import importlib.util
import sys

package, *hidden = sys.argv[1:]


class Without:
    """A finder of sys.meta_path that does not find the hidden packages."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            return None
        return self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
for name in hidden:
    assert name not in sys.modules, f"{name} was loaded when Python started"
    assert importlib.util.find_spec(name) is None, f"{name} is not hidden"

importlib.import_module(package)
'''

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
    process = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, package, *hidden], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, f"import {package} without {', '.join(hidden)}:\n{process.stderr}"

"""Code in a process of its own from which some packages are hidden, as if they were not installed."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = '''
import importlib.util
import sys

hidden = sys.argv[1].split(",")


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

{code}
'''


def run_without(hidden: tuple[str, ...], code: str) -> str:
    """What the code prints in a process that finds none of these packages."""
    process = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT.replace("{code}", code), ",".join(hidden)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, f"without {', '.join(hidden)}: {code}\n{process.stderr}"
    return process.stdout

"""The benchmarks for tests: they are no part of what is installed."""

from __future__ import annotations

import sys
from pathlib import Path

# At the end of the path the checkout hides nothing that is installed.
sys.path.append(str(Path(__file__).parents[2]))

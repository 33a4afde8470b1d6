"""A function run by two processes that talk through gloo, each of which has half of a model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing


def on_two_ranks(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(rank, *arguments)` returns on each of two ranks. It is to be found by import: in this folder."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_run, (folder, function, arguments), nprocs=2)
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(2)]


def _run(rank: int, folder: str, function: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        torch.save(function(rank, *arguments), Path(folder) / str(rank))
    finally:
        dist.destroy_process_group()

"""Several gloo processes for a test: forked from a clean server that has imported what is slow to import."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SECONDS = 120  # until a test counts as deadlocked

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["torch", "torch.distributed.fsdp", "transformers", "zerozoo.language.training"])


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns in each of `size` processes that have joined one group, by rank.

    Fails with the traceback of the first process that failed, or when they have not ended in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            server.Process(target=_work, args=(rank, size, folder, function, arguments)) for rank in range(size)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + SECONDS
        broken = False
        try:
            while any(process.is_alive() for process in processes) and not broken:
                for process in processes:
                    process.join(0.1)
                broken = any(process.exitcode for process in processes) or time.monotonic() > deadline
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
        reasons = [path.read_text(encoding="utf-8") for path in sorted(Path(folder).glob("error-*"))]
        assert not broken, "\n".join(reasons) or f"the processes did not end within {SECONDS} s"
        return [torch.load(Path(folder) / f"result-{rank}", weights_only=False) for rank in range(size)]


def _work(rank: int, size: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    try:
        torch.save(function(*arguments), Path(folder) / f"result-{rank}")
    except BaseException:
        (Path(folder) / f"error-{rank}").write_text(traceback.format_exc(), encoding="utf-8")
        raise
    torch.distributed.destroy_process_group()

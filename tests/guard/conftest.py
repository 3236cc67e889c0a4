"""A zygote for each test, and the proof that nothing of it is left."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Process, Zygote, all_gone, descendants, hit, processes


@pytest.fixture
def folder() -> Iterator[Path]:
    # Short: the path of a Unix socket has 107 bytes.
    path = Path(tempfile.mkdtemp(prefix="sg-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def zygote(folder: Path) -> Iterator[Zygote]:
    made = Zygote(folder)
    yield made
    left: list[Process] = []
    try:
        left = processes(descendants(os.getpid()))
        made.close()
        all_gone(left)
    finally:
        # One test's remains must not fail the next.
        for process in left:
            if process.alive():
                hit(process.pid, signal.SIGKILL)

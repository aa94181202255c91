"""What a run folder says about itself: settings, where its cache lies, and the lock of its one owner."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from .config import RunConfig
from .config_json import from_json, to_json
from .files import write_json

RUN, CANCEL, HEARTBEAT, LOG, LOCK = "run.json", "cancel", "heartbeat", "worker.log", "lock"
MEMORY_RAN_OUT = "memory-ran-out"
"""A file in the run folder that says so for whichever process of the run it was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFile:
    """`run.json`: everything a worker needs to start."""

    config: RunConfig
    cache: str
    """Folder of the tensor cache."""
    device: str = "auto"
    """`auto` takes the first CUDA device, or MPS, or the CPU."""
    watch_parent: bool = False
    """Checkpoint and exit when the heartbeat file grows old."""
    base_hashes: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Store it in a run folder."""
        write_json(folder / RUN, to_json(self))


def read_run_file(folder: Path) -> RunFile:
    """The run file of a folder; FileNotFoundError when it is no run."""
    path = folder / RUN
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run ({RUN} is missing)")
    return from_json(RunFile, json.loads(path.read_text(encoding="utf-8")))


def run_lock(folder: Path) -> FileLock:
    """The acquired lock of a run; BlockingIOError when another process trains in this folder.

    The operating system frees it when its owner dies, however it dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(
            f"another process is training the run {folder.name!r}; wait for it, cancel it, or choose "
            "another name"
        ) from error
    return lock

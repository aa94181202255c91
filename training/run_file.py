"""What a run folder says about itself: settings, where its cache lies, and the lock of its one owner."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from .config import RunConfig
from .config_json import from_json, to_json
from .files import write_json
from .locks import folder_lock

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
    watch_parent: bool = True
    """Checkpoint and exit when the heartbeat file grows old; `Worker` keeps it young."""
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
    """The acquired lock of a run; BlockingIOError when another process trains in this folder."""
    return folder_lock(folder, LOCK, "training the run")

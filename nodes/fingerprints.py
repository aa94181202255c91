"""What tells ComfyUI that the files behind a name have changed, so that it does not take an old result.

A node whose `fingerprint_inputs` gives what it gave before is not run again. A linked name is None there, as
nothing has run yet: it changes with what it comes from. What is missing is told when the node runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from ..model_loaders.lora import lora_path
from ..model_loaders.paths import model_folder
from .dataset_folders import datasets

UNKNOWN = ""
"""The state of a name that is linked, or of what is not there."""


def files_state(files: Iterable[Path]) -> str:
    """A hash of names, sizes and times; it leaves out what is not there."""
    digest = hashlib.sha256()
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def folder_state(path: Path) -> str:
    """A hash that changes with any file in a folder or one folder below it, or with a single file."""
    entries = sorted(path.iterdir()) if path.is_dir() else [path]
    return files_state(
        file for entry in entries for file in (sorted(entry.iterdir()) if entry.is_dir() else [entry])
    )


def dataset_state(name: str | None) -> str:
    """State of a dataset's files."""
    known = datasets()
    return folder_state(known[name]) if name in known else UNKNOWN


def model_folder_state(key: str, name: str | None) -> str:
    """State of the files of a folder below `models/<key>`."""
    if not name:
        return UNKNOWN
    try:
        return folder_state(model_folder(key, name))
    except FileNotFoundError:
        return UNKNOWN


def lora_state(name: str | None) -> str:
    """State of a LoRA file and of the settings beside it."""
    if not name:
        return UNKNOWN
    try:
        path = lora_path(name)
    except (FileNotFoundError, ValueError):
        return UNKNOWN
    return files_state([path, path.with_name("adapter_config.json")])

"""Writing files that are either whole or absent, whatever happens in between."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

CHUNK = 1 << 22


def flush_to_disk(path: Path) -> None:
    """fsync a file, or on POSIX a folder, so that a power cut cannot lose it after a rename."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_beside(path: Path) -> Path:
    """A fresh name in the folder of `path`, so that a rename stays on one disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not mkstemp: what takes the file's place should be readable to whom other files are. Without the
    # suffix: what a crash leaves in a models folder would be offered by ComfyUI's lists.
    partial = path.with_name(f".partial-{uuid.uuid4().hex}")
    partial.touch(exist_ok=False)
    return partial


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """A safetensors file at `path`, atomically."""
    partial = temporary_beside(path)
    try:
        plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        try:
            save_file(plain, partial, metadata=dict(metadata or {}))
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(f"{path.name} could not be written: {error}") from error
        flush_to_disk(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path, keep: bool = False, ours: Collection[str] = ()) -> Generator[Path]:
    """A folder to fill, which takes the place of `folder` when the block ends well and is gone otherwise.

    With `keep`, what the older folder has and the new one does not bring moves over, but for names in `ours`.
    """
    folder = folder.resolve()  # a link stays, and the folder it leads to is replaced
    partial = folder.with_name(f".partial-{folder.name}")
    aside = folder.with_name(f".old-{folder.name}")
    end_exchange(aside, folder, keep, ours)  # a process was killed in the middle of one
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                flush_to_disk(path)
        if folder.exists():
            folder.rename(aside)
        try:
            partial.rename(folder)
        finally:
            end_exchange(aside, folder, keep, ours)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"{folder.name} could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def end_exchange(aside: Path, folder: Path, keep: bool, ours: Collection[str]) -> None:
    """Put the older folder back if no new one came, else take from it what is to be kept and delete it."""
    if not aside.exists():
        return
    if not folder.exists():
        aside.rename(folder)
        return
    if keep:
        for entry in list(aside.iterdir()):
            if entry.name not in ours and not os.path.lexists(folder / entry.name):
                entry.rename(folder / entry.name)
    shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """A text file at `path`, atomically."""
    partial = temporary_beside(path)
    try:
        partial.write_text(text, encoding="utf-8")
        flush_to_disk(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """A JSON file at `path`, atomically."""
    write_text(path, json.dumps(data, indent=1, sort_keys=True) + "\n")


def file_sha256(path: Path, between: Callable[[], None] = lambda: None) -> str:
    """Hex digest of a file's bytes; `between` is called between chunks and may raise."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            between()
    return digest.hexdigest()


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise OSError unless `needed` bytes (and a tenth more) are free where `folder` is."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed * 1.1:
        raise OSError(
            f"{what} needs {needed / 2**20:.0f} MiB, only {free / 2**20:.0f} MiB are free in {folder}. "
            "Free some space; the run continues from its last checkpoint."
        )

"""A run's files: tensors, folders and JSON written whole or not at all, hashes, and room on the disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..dit import whole_files
from ..dit.safetensors_files import write_errors
from ..dit.whole_files import whole_file, write_text

CHUNK = 1 << 22


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """A safetensors file at `path`, atomically."""
    with whole_file(path) as partial, write_errors(path.name):
        plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        save_file(plain, partial, metadata=dict(metadata or {}))


@contextmanager
def whole_folder(folder: Path, keep: bool = False, ours: Collection[str] = ()) -> Generator[Path]:
    """`whole_files.whole_folder` for weights: a disk that fills up meanwhile is told as an OSError."""
    with write_errors(folder.resolve().name), whole_files.whole_folder(folder, keep, ours) as partial:
        yield partial


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

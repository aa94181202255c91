"""What tells ComfyUI that the files behind a name have changed, so that it does not take an old result.

A node whose `fingerprint_inputs` gives what it gave before is not run again. A linked name is None there, as
nothing has run yet: it changes with what it comes from. What is missing is told when the node runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..model_loaders.dreamomni import shared_parts
from ..model_loaders.lora import SETTINGS_FILE, lora_path
from ..model_loaders.paths import model_folder
from ..model_loaders.weight_files import weight_paths
from ..training.synthesis.generate import LOCK
from .dataset_folders import datasets, input_folder

UNKNOWN = ""
"""The state of a name that is linked, or of what is not there."""
LEVELS = 4
"""Folders below each other that are looked into; links may make a loop."""


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


def files_below(path: Path, levels: int = LEVELS) -> Iterator[Path]:
    """The files of a folder and of the folders in it, or a single file; a lock is none of them."""
    if not path.is_dir():
        yield path
    elif levels:
        for entry in sorted(path.iterdir()):
            if entry.name != LOCK:
                yield from files_below(entry, levels - 1)


def folder_state(path: Path) -> str:
    """A hash that changes with any file of a folder, or with a single file."""
    return files_state(files_below(path))


def state_of_name(name: str | None, files: Callable[[str], Iterable[Path]]) -> str:
    """State of the files that a name stands for; UNKNOWN where it stands for none."""
    if not name:
        return UNKNOWN
    try:
        return files_state(files(name))
    except (FileNotFoundError, ValueError):
        return UNKNOWN


def dataset_state(name: str | None) -> str:
    """State of the files of every dataset of this name; a list of samples stands among its pictures."""
    places = datasets().get(name or "", [])
    return " ".join(folder_state(place if place.is_dir() else place.parent) for place in places) or UNKNOWN


def input_folder_state(name: str | None) -> str:
    """State of a folder of stickers or photos inside ComfyUI's input folder."""

    def files(name: str) -> Iterator[Path]:
        place = input_folder(name, "folder")
        yield from files_below(Path(place)) if place else ()

    return state_of_name(name, files)


def weights_state(kind: str, name: str | None) -> str:
    """State of a weight file or of a set of shards in `models/<kind>`."""
    return state_of_name(name, lambda chosen: weight_paths(kind, chosen))


def model_folder_state(key: str, name: str | None) -> str:
    """State of the files of a folder below `models/<key>`."""
    return state_of_name(name, lambda chosen: files_below(model_folder(key, chosen)))


def dreamomni_state(name: str | None) -> str:
    """State of a DreamOmni folder and of the VLM and VAE it shares with others."""

    def files(chosen: str) -> Iterator[Path]:
        folder = model_folder("dreamomni", chosen)
        yield from files_below(folder)
        yield from (path for part in shared_parts(folder) for path in files_below(part))

    return state_of_name(name, files)


SHARING_FOLDERS = {"dreamomni": dreamomni_state}
"""Kinds of model folder that may name parts outside themselves -> their state."""


def base_folder_state(key: str, name: str | None) -> str:
    """State of a model folder that is trained on, with all that belongs to it."""
    return SHARING_FOLDERS[key](name) if key in SHARING_FOLDERS else model_folder_state(key, name)


def lora_state(name: str | None) -> str:
    """State of a LoRA file and of the settings beside it."""

    def files(chosen: str) -> list[Path]:
        path = lora_path(chosen)
        return [path, path.with_name(SETTINGS_FILE)]

    return state_of_name(name, files)

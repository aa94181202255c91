"""Where datasets, stickers and photos lie: below ComfyUI's output and input folders, nowhere else."""

from __future__ import annotations

import os
import re
from pathlib import Path

import folder_paths

PLACE = Path("dreamomni") / "datasets"
NAME = re.compile(r"[\w][\w .-]{0,79}")


def dataset_roots() -> list[Path]:
    """`output/dreamomni/datasets`, where datasets are written, then `input/dreamomni/datasets`."""
    roots = (folder_paths.get_output_directory(), folder_paths.get_input_directory())
    return [Path(root) / PLACE for root in roots]


def datasets() -> dict[str, list[Path]]:
    """Name -> folders or JSONL files that can be opened, at most one of each root; none that is hidden."""
    found: dict[str, list[Path]] = {}
    for root in dataset_roots():
        for entry in root.iterdir() if root.is_dir() else ():
            if not entry.name.startswith(".") and (entry.is_dir() or entry.suffix == ".jsonl"):
                found.setdefault(entry.name, []).append(entry)
    return found


def dataset_names() -> list[str]:
    """Names of all dataset folders and JSONL files, sorted."""
    return sorted(datasets())


def checked_name(name: str) -> str:
    """The name of a new dataset, if it is one folder's name; raises ValueError otherwise."""
    clean = name.strip()
    if not NAME.fullmatch(clean) or clean.endswith("."):
        raise ValueError(
            f"{name!r} cannot be a dataset's name: use letters, digits, spaces, _ - . (at most 80), no "
            f"folders."
        )
    return clean


def new_dataset_folder(name: str) -> Path:
    """Where a dataset of this name is written."""
    return dataset_roots()[0] / checked_name(name)


def find_dataset(name: str) -> Path:
    """The folder (or JSONL file) of one of `dataset_names`.

    Raises FileNotFoundError naming what there is, and ValueError for a name that two datasets have.
    """
    known = datasets()
    here = known.get(name, [])
    if len(here) > 1:
        raise ValueError(
            f"two datasets are called {name!r}: {' and '.join(map(str, here))}. Rename one and press R to "
            "refresh."
        )
    if here:
        return here[0]
    places = " or ".join(str(root) for root in dataset_roots())
    raise FileNotFoundError(
        f"there is no dataset {name!r} in {places}; found: {', '.join(sorted(known)) or 'none'}. "
        "Put its folder there and press R to refresh."
    )


def input_folder(name: str, what: str) -> str | None:
    """A sub-folder of ComfyUI's input folder, or None for an empty name.

    Raises ValueError for a path that leaves the input folder, FileNotFoundError for a missing one.
    """
    if not name.strip():
        return None
    base = os.path.normpath(folder_paths.get_input_directory())
    path = os.path.normpath(os.path.join(base, name.strip()))
    if not Path(path).is_relative_to(base):
        raise ValueError(
            f"{what} {name!r} lies outside ComfyUI's input folder {base}. Copy or link the pictures into a "
            "folder inside it and give that folder's name."
        )
    if not Path(path).is_dir():
        there = sorted(entry.name for entry in Path(base).iterdir() if entry.is_dir())
        raise FileNotFoundError(
            f"{what}: there is no folder {path}; folders in {base}: {', '.join(there) or 'none'}."
        )
    return path

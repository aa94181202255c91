"""Files and folders that are either whole or absent on disk, whatever happens in between.

Standard library only: the processes that draw datasets write here too, and do not load torch.
"""

from __future__ import annotations

import glob
import os
import shutil
import uuid
from collections.abc import Collection, Generator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial-"
"""How the name of what is not finished begins."""
OLD_SUFFIX = ".partial"
"""How the names of unfinished files of datasets ended in earlier versions."""


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
    partial = path.with_name(f"{PARTIAL}{uuid.uuid4().hex}")
    partial.touch(exist_ok=False)
    return partial


def clear_partial_files(folder: Path) -> None:
    """Remove the unfinished files that a crash left in a folder in which nobody else writes."""
    for left in (*folder.glob(f"{PARTIAL}*"), *folder.glob(f"*{OLD_SUFFIX}")):
        if left.is_file():
            with suppress(PermissionError):  # on Windows another program may hold it; a later time will do
                left.unlink()


def copy_finished(source: Path, target: Path) -> None:
    """Copy a folder to a new place, but for what a crash left unfinished in it."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(f"{PARTIAL}*"))


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """A file to fill, which takes the place of `path` when the block ends well and is gone otherwise."""
    partial = temporary_beside(path)
    try:
        yield partial
        flush_to_disk(partial)
        put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def put_in_place(partial: Path, path: Path) -> None:
    """Let a finished file take the place of `path`; PermissionError says what to do where one is held."""
    try:
        partial.replace(path)
    except PermissionError as error:
        if not path.is_file():
            raise
        exchange(partial, path, error)


def exchange(partial: Path, path: Path, refused: PermissionError) -> None:
    """Replace a file that a program on Windows has mapped: it can be renamed there, though not replaced."""
    name = f"{PARTIAL}{path.name}-"
    for held in path.parent.glob(f"{glob.escape(name)}*"):
        with suppress(PermissionError):  # from an earlier time; still held, it stays once more
            held.unlink()
    aside = path.with_name(f"{name}{uuid.uuid4().hex}")
    try:
        path.replace(aside)
    except OSError as error:
        raise PermissionError(
            f"{path} could not be replaced ({refused}): a program holds it, likely a ComfyUI that has loaded "
            "it, or the file or its folder may not be written. Unload the models there or restart it, then "
            "try again. Nothing is lost: the file is as it was."
        ) from error
    try:
        partial.replace(path)
    except OSError:
        aside.replace(path)
        raise
    with suppress(PermissionError):  # still held: the next exchange removes it
        aside.unlink()


def write_text(path: Path, text: str) -> None:
    """A text file at `path`, atomically."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def whole_folder(folder: Path, keep: bool = False, ours: Collection[str] = ()) -> Generator[Path]:
    """A folder to fill, which takes the place of `folder` when the block ends well and is gone otherwise.

    With `keep`, what the older folder has and the new one does not bring moves over, out of subfolders too,
    but for places below the folder in `ours`, as `vlm/config.json`; a folder among them is ours as a whole.
    """
    folder = folder.resolve()  # a link stays, and the folder it leads to is replaced
    partial = folder.with_name(f"{PARTIAL}{folder.name}")
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
        move_missing(aside, folder, frozenset(ours))
    shutil.rmtree(aside, ignore_errors=True)


def move_missing(older: Path, newer: Path, ours: Set[str], below: str = "") -> None:
    """Move what the folder `newer` lacks out of `older`, but for `ours`; both lie at `below` in the whole."""
    for entry in list(older.iterdir()):
        place, target = f"{below}{entry.name}", newer / entry.name
        if place in ours:
            continue
        if is_folder(entry) and (is_folder(target) or holds_any(place, ours)):
            move_missing(entry, target, ours, f"{place}/")
        elif not os.path.lexists(target):
            newer.mkdir(parents=True, exist_ok=True)
            entry.rename(target)


def is_folder(path: Path) -> bool:
    """Whether the path is a folder itself, not a link to one."""
    return path.is_dir() and not path.is_symlink()


def holds_any(place: str, ours: Set[str]) -> bool:
    """Whether any of `ours` lies in the folder `place`."""
    return any(name.startswith(f"{place}/") for name in ours)

"""One process at a time writes in a folder."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout


def folder_lock(folder: Path, name: str, doing: str) -> FileLock:
    """The acquired lock file `name` of a folder; BlockingIOError when another process is `doing` that now.

    The operating system frees it when its owner dies, however it dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(
            f"another process is {doing} {folder.name!r}; wait for it, cancel it, or choose another name"
        ) from error
    return lock

"""Folders of pictures with captions and control pictures, as ai-toolkit and musubi-tuner use them.

    dataset/target/cat.png  dataset/target/cat.txt          the result and its instruction
    dataset/control/cat.png                                 ai-toolkit: the source, same name
    dataset/control_1/cat.png  dataset/control_2/cat.png    ai-toolkit: further pictures, one folder each
    dataset/control/cat_0.png  dataset/control/cat_1.png    musubi-tuner: numbered pictures of one target

The first control picture is the source, the others are references.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

from .records import IMAGE_SUFFIXES, UNREAD_SUFFIXES, Picture, SampleRecord, told_unread, words_of

TARGET_FOLDERS = ("target", "targets", "images", "image", "img")
NUMBERED = re.compile(r"(?P<stem>.+)_(?P<number>\d+)")


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder, by name; sub-folders are not entered."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def unread_in(folders: list[Path]) -> Counter[str]:
    """How many picture files of the folders are of a kind that is not read, by ending."""
    endings = (path.suffix.lower() for folder in folders for path in folder.iterdir())
    return Counter(ending for ending in endings if ending in UNREAD_SUFFIXES)


class FolderRecords:
    """Samples of a folder of targets, captions and control pictures; only names are kept in memory."""

    def __init__(self, folder: Path) -> None:
        target_folder = next((folder / name for name in TARGET_FOLDERS if (folder / name).is_dir()), folder)
        self._targets = pictures_in(target_folder)
        places = sorted(
            path for path in folder.iterdir() if path.is_dir() and path.name.startswith("control")
        )
        self.left_out = told_unread(unread_in([target_folder, *places]))
        if not self._targets:
            raise ValueError(
                f"{folder} holds no dataset: no .tar shards, no .jsonl file and no pictures. Put targets and "
                f"captions (cat.png, cat.txt) into {folder / 'target'} and their sources into "
                f"{folder / 'control'}. {self.left_out}".strip()
            )
        self._places = places
        self._controls = self._match(places)

    def __len__(self) -> int:
        return len(self._targets)

    def record(self, index: int) -> SampleRecord:
        """The sample at `index`; a missing caption or control picture raises FileNotFoundError."""
        target = self._targets[index]
        paths = self._controls.get(target.stem, [])
        controls = [Picture(path=path, label=path.name) for path in paths]
        used = {path.parent for path in paths}
        # The order of the pictures is that of their folders: a gap would make a reference the source.
        last = max((number for number, place in enumerate(self._places) if place in used), default=0)
        for place in self._places[: last + 1]:
            if place not in used:
                raise FileNotFoundError(
                    f"{target.name} has no control picture in {place.name}: expected {target.stem}.png or "
                    f"{target.stem}_0.png there."
                )
        return SampleRecord(
            id=target.stem,
            task="edit" if controls else "generate",
            instruction=self._caption(target),
            source=controls[0] if controls else None,
            references=tuple(controls[1:]),
            target=Picture(path=target, label=target.name),
        )

    def fingerprint(self) -> str:
        """Hash of all names, sizes and times of change."""
        digest = hashlib.sha256()
        files = [*self._targets, *(target.with_suffix(".txt") for target in self._targets)]
        files += [path for paths in self._controls.values() for path in paths]
        for path in files:
            if path.is_file():
                status = path.stat()
                digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def _match(self, places: list[Path]) -> dict[str, list[Path]]:
        stems = {target.stem for target in self._targets}
        found: dict[str, list[Path]] = {}
        for place in places:
            numbered: list[tuple[str, int, Path]] = []
            for path in pictures_in(place):
                match = NUMBERED.fullmatch(path.stem)
                if path.stem in stems:
                    # A whole name wins: control cat_1.png belongs to a target cat_1.png if there is one.
                    numbered.append((path.stem, -1, path))
                elif match and match["stem"] in stems:
                    numbered.append((match["stem"], int(match["number"]), path))
            for stem, _, path in sorted(numbered):
                found.setdefault(stem, []).append(path)
        return found

    def _caption(self, target: Path) -> str:
        path = target.with_suffix(".txt")
        try:
            words = words_of(path.read_bytes(), str(path)).strip()
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{target.name} has no caption: write the instruction into {path.name} beside it."
            ) from error
        if not words:
            raise ValueError(f"{path} is empty: write the instruction of {target.name} into it.")
        return words

"""Cases out, answers in: lets any program answer the held-out cases with picture files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...dit.whole_files import clear_partial_files, flush_to_disk, whole_file
from ..datasets.records import decode_picture, flatten_on_white
from ..synthesis.render import Canvas
from ..synthesis.writers import encode_png
from .cases import Case
from .run import Editor

CASES_FILE = "samples.jsonl"
MARK = ".held-out-cases"
"""A file that says that a folder was written here, and so may be written over."""


def claim(folder: Path) -> None:
    """Make or take a folder for cases; ValueError for one with files of somebody else."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; the cases need a folder. Name a new or an empty one.")
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / MARK
    if not mark.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} holds files that are not of this command, which could be written over. "
            "Name a new folder, an empty one or one of earlier cases."
        )
    # Before the first picture: what an interrupted command left can then be written again.
    mark.write_text("Written by dev.py evaluate --write-cases, which may write it again.\n", encoding="utf-8")


def write_cases(folder: Path, cases: Iterable[Case]) -> int:
    """Write cases as a dataset folder that Load Dataset opens; returns their number.

    The target is written too, because it is part of a dataset; an honest program does not look at it.
    The list of the cases appears last and whole. Raises ValueError for a folder with other files.
    """
    claim(folder)
    clear_partial_files(folder)
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    final = folder / CASES_FILE
    # An earlier list would name pictures that are about to change.
    final.unlink(missing_ok=True)
    count = 0
    with whole_file(final) as partial, partial.open("w", encoding="utf-8") as lines:
        for case in cases:
            lines.write(json.dumps(write_case(pictures, case), ensure_ascii=False) + "\n")
            count += 1
    return count


def write_case(pictures: Path, case: Case) -> dict[str, Any]:
    """Write the pictures of a case; returns its line of the list, with paths from the folder above."""
    sample = case.sample

    def save(name: str, canvas: Canvas) -> str:
        path = pictures / f"{case.id}.{name}.png"
        path.write_bytes(encode_png(canvas))
        flush_to_disk(path)
        return path.relative_to(pictures.parent).as_posix()

    return {
        "id": case.id,
        "task": case.task,
        "instruction": sample.plan.instruction,
        "source": None if sample.source is None else save("source", sample.source),
        "references": [save(f"ref_{place}", canvas) for place, canvas in enumerate(sample.references)],
        "target": save("target", sample.target),
    }


def answers_from(folder: Path) -> Editor:
    """An editor that reads `<case id>.png` from a folder; raises for a missing or wrong picture."""

    def answer(cases: Sequence[Case]) -> list[Canvas]:
        return [read_answer(folder, case) for case in cases]

    return answer


def read_answer(folder: Path, case: Case) -> Canvas:
    """The (height, width, 3) answer to one case, in the target's size.

    Raises FileNotFoundError where there is none, ValueError for a picture of another size.
    """
    path = folder / f"{case.id}.png"
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no answer {path}. Every case needs a picture named after its id; "
            "ask for the same size, tasks and number of cases as when they were written."
        )
    picture = np.asarray(flatten_on_white(decode_picture(path, str(path))))
    if picture.shape != case.sample.target.shape:
        height, width = case.sample.target.shape[:2]
        raise ValueError(f"{path} has {picture.shape[1]}x{picture.shape[0]} px, the case {width}x{height}.")
    return picture

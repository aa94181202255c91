"""Cases out, answers in: lets any program answer the held-out cases with picture files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...dit.whole_files import clear_partial_files, flush_to_disk, whole_file, write_text
from ..datasets.records import decode_picture, flatten_on_white
from ..synthesis.render import Canvas
from ..synthesis.writers import encode_png
from .cases import Case
from .run import Editor

CASES_FILE = "samples.jsonl"
PICTURES = "pictures"
MARK = ".held-out-cases"
"""A file that says that a folder was written here, and so may be written over."""
ASKED_FILE = "held-out-cases.json"
"""Says which cases lie in a folder; answers have a copy, or lie in a folder within that of the cases."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Which cases a program was asked: those of other recipes have the same names."""

    recipe: str
    """`cases_fingerprint` of their recipe."""
    options: str
    """What on the command line gives this recipe; for messages."""

    def __str__(self) -> str:
        return f"`dev.py evaluate {self.options}` (recipe {self.recipe[:8]})"


def read_asked(path: Path) -> Asked:
    """Which cases a file says; ValueError when it says none."""
    try:
        values = json.loads(path.read_bytes())
        return Asked(recipe=str(values["recipe"]), options=str(values["options"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not say which cases were asked. Copy the file again from the folder that "
            "--write-cases made, or take it away."
        ) from error


def answer_the_same_cases(folder: Path, judged: Asked) -> bool:
    """Whether the answers in a folder say that they are to the judged cases; False if they say nothing.

    Raises ValueError for answers to other cases.
    """
    found = (place / ASKED_FILE for place in (folder, folder.absolute().parent))
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        return False
    asked = read_asked(path)
    if asked.recipe != judged.recipe:
        raise ValueError(
            f"{folder} holds answers to the cases of {asked}, as {path} says. Judged are those of {judged}: "
            "they have the same names and show something else. Name the MODEL, --size and --stickers that "
            "the cases were written with; or write the cases anew and have them answered again."
        )
    return True


def require_no_answers_to_others(folder: Path, asked: Asked) -> None:
    """ValueError if a folder holds more than cases, and they are not the ones that are to be written."""
    path = folder / ASKED_FILE
    if path.is_file() and read_asked(path).recipe == asked.recipe:
        return
    known = {CASES_FILE, PICTURES, ASKED_FILE}
    others = sorted(item.name for item in folder.iterdir() if item.name[0] != "." and item.name not in known)
    if others:
        raise ValueError(
            f"{folder} holds cases of another recipe and {', '.join(others[:3])} beside them, which would "
            "pass for answers to the new cases. Name a new folder, or move the answers away."
        )


def claim(folder: Path, asked: Asked) -> None:
    """Make or take a folder for cases; ValueError for one with files of somebody else or old answers."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; the cases need a folder. Name a new or an empty one.")
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / MARK
    if not mark.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} holds files that are not of this command, which could be written over. "
            "Name a new folder, an empty one or one of earlier cases."
        )
    require_no_answers_to_others(folder, asked)
    # Before the first picture: what an interrupted command left can then be written again.
    mark.write_text("Written by dev.py evaluate --write-cases, which may write it again.\n", encoding="utf-8")


def write_cases(folder: Path, cases: Iterable[Case], asked: Asked) -> int:
    """Write cases as a dataset folder that Load Dataset opens; returns their number.

    The target is written too, because it is part of a dataset; an honest program does not look at it.
    The list of the cases appears last and whole. Raises ValueError for a folder with other files.
    """
    claim(folder, asked)
    clear_partial_files(folder)
    pictures = folder / PICTURES
    pictures.mkdir(exist_ok=True)
    final = folder / CASES_FILE
    # An earlier list would name pictures that are about to change.
    final.unlink(missing_ok=True)
    write_text(folder / ASKED_FILE, json.dumps(asdict(asked), ensure_ascii=False, indent=1) + "\n")
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

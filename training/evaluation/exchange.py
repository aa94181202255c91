"""Cases out, answers in: lets any program answer the held-out cases with picture files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..datasets.records import decode_picture, flatten_on_white
from ..synthesis.render import Canvas
from ..synthesis.writers import encode_png
from .cases import Case
from .run import Editor

CASES_FILE = "samples.jsonl"


def write_cases(folder: Path, cases: Iterable[Case]) -> int:
    """Write cases as a dataset folder that Load Dataset opens; returns their number.

    The target is written too, because it is part of a dataset; an honest program does not look at it.
    """
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    count = 0
    with (folder / CASES_FILE).open("w", encoding="utf-8") as lines:
        for case in cases:
            sample = case.sample

            def save(name: str, canvas: Canvas, case_id: str = case.id) -> str:
                path = pictures / f"{case_id}.{name}.png"
                path.write_bytes(encode_png(canvas))
                return path.relative_to(folder).as_posix()

            references = [save(f"ref_{place}", canvas) for place, canvas in enumerate(sample.references)]
            line = {
                "id": case.id,
                "task": case.task,
                "instruction": sample.plan.instruction,
                "source": None if sample.source is None else save("source", sample.source),
                "references": references,
                "target": save("target", sample.target),
            }
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    return count


def answers_from(folder: Path) -> Editor:
    """An editor that reads `<case id>.png` from a folder; raises for a missing or wrong picture."""

    def answer(cases: Sequence[Case]) -> list[Canvas]:
        return [read_answer(folder, case) for case in cases]

    return answer


def read_answer(folder: Path, case: Case) -> Canvas:
    """The (height, width, 3) answer to one case, in the target's size."""
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

"""The demo's pictures are the judge's own cases, drawn again from their names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pack.training.evaluation.cases import Case, held_out_cases
from pack.training.recipes.small import SmallRecipe
from pack.training.synthesis.split import is_held_out
from PIL import Image

FOLDER = Path(__file__).resolve().parents[3] / "assets" / "demo"
RECORDS = [json.loads(line) for line in (FOLDER / "samples.jsonl").read_text().splitlines()]


def case_of(name: str) -> Case:
    task, group, number = name.rsplit("-", 2)
    cases = held_out_cases(SmallRecipe().synthesis(()), task, group, int(number) + 1)
    return next(case for case in cases if case.id == name)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["id"])
def test_it_is_a_held_out_case(record: dict[str, Any]) -> None:
    sample = case_of(record["id"]).sample
    assert is_held_out(sample.plan)
    assert record["instruction"] == sample.plan.instruction
    drawn = [sample.source, *sample.references, sample.target]
    names = [record["source"], *record["references"], record["target"]]
    for name, canvas in zip(names, drawn, strict=True):
        assert (name is None) == (canvas is None)
        if canvas is not None:
            shipped = np.asarray(Image.open(FOLDER / name).convert("RGB")).astype(int)
            # Another version of a drawing library may round an edge differently.
            assert abs(shipped - canvas).max() <= 2


def test_nothing_else_lies_there_and_it_is_small() -> None:
    files = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    named = {name for row in RECORDS for name in (row["source"], *row["references"], row["target"]) if name}
    assert files == named | {"samples.jsonl", "README.md"}
    assert sum((FOLDER / name).stat().st_size for name in files) < 100_000

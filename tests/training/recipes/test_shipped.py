"""The shipped model: the judge finds again what the shipped table says. Skipped while none is shipped."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
from pack.training.evaluation.cases import GROUPS, held_out_cases
from pack.training.evaluation.report import Rate
from pack.training.evaluation.rules import Judge
from pack.training.recipes.editor import judged_models

SHIPPED = Path(__file__).resolve().parents[3] / "assets" / "small"
VERDICTS = SHIPPED / "verdicts.json"
"""What `dev.py evaluate assets/small --out DIR` wrote of the shipped weights."""
TASKS = ("remove", "recolour", "reference_add", "text_to_image")
CASES, EVALUATIONS = 8, 4
FLIPS = 0.1
"""Share of verdicts that another processor's rounding may turn."""


@pytest.mark.skipif(not VERDICTS.is_file(), reason="no judged model is shipped in assets/small")
def test_the_shipped_table_is_found_again() -> None:
    (known,) = (
        rows for name, rows in json.loads(VERDICTS.read_text("utf-8")).items() if name == SHIPPED.name
    )
    models = judged_models([SHIPPED], EVALUATIONS)
    (editor,), judge = models.editors.values(), Judge()
    found: dict[str, bool] = {}
    for task, group in product(TASKS, GROUPS):
        cases = list(held_out_cases(models.config, task, group, CASES))
        for case, result in zip(cases, editor(cases), strict=True):
            found[case.id] = judge.judge(case, result).success
    assert len(found) == len(TASKS) * len(GROUPS) * CASES
    assert sum(known[name] != right for name, right in found.items()) <= FLIPS * len(found)
    same = [right for name, right in known.items() if name.startswith(TASKS)]
    low, high = Rate(successes=sum(found.values()), count=len(found)).interval
    assert low <= sum(same) / len(same) <= high

"""Solvers of a trained folder's pictures, and stickers as a second set for its judge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pack.bench import small_solvers
from pack.samplers.solvers import SOLVERS
from pack.training.evaluation import command as evaluation_command
from pack.training.evaluation.cases import held_out_cases
from pack.training.evaluation.command import with_stickers
from pack.training.evaluation.rules import Judge
from pack.training.recipes.editor import BASE, FolderEditor, Sampling
from PIL import Image

from tests.training.recipes.small_budget import CPU, tiny_recipe


@pytest.fixture(scope="module")
def cases():
    config = tiny_recipe().synthesis((("remove", 1.0),))
    return list(held_out_cases(config, "remove", "several", 2))


def test_every_solver_ends_in_the_same_picture(loud_model: Path, cases) -> None:
    editor = FolderEditor(loud_model, Sampling(evaluations=240, schedule="linear"), CPU)
    exact = editor(cases[:1])[0].astype(int)
    for solver, schedule in [*((name, "linear") for name in SOLVERS), ("adams-2", "beta")]:
        editor.sampling = Sampling(evaluations=80, solver=solver, schedule=schedule)
        assert np.abs(editor(cases[:1])[0] - exact).mean() < 4, (solver, schedule)
    editor.sampling = Sampling(evaluations=1)
    assert np.abs(editor(cases[:1])[0] - exact).mean() > 12
    assert Sampling(evaluations=9, solver="heun").steps == 5
    with pytest.raises(ValueError, match="solver is 'rk4'; choose one of"):
        Sampling(evaluations=4, solver="rk4")
    with pytest.raises(ValueError, match="a picture needs at least 1 evaluation, got 0"):
        Sampling(evaluations=0)


def test_words_are_read_once_for_all_evaluations(loud_model: Path, cases, monkeypatch) -> None:
    editor, calls = FolderEditor(loud_model, 5, CPU), []
    pair = editor.pairs[BASE]
    whole = type(pair).features
    monkeypatch.setattr(type(pair), "features", lambda *args: calls.append(1) or whole(*args))
    editor(cases[:1])
    assert len(calls) == 1


def test_stickers_are_a_set_of_their_own(tiny_model: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "stickers"
    folder.mkdir()
    for number, name in enumerate(("frog", "boat", "lamp", "drum", "kite", "shoe", "coin", "leaf")):
        art = np.zeros((40, 40, 4), np.uint8)
        art[4:36, 4 + 2 * number : 36] = (30 * number, 250 - 30 * number, 90, 255)
        Image.fromarray(art).save(folder / f"{name}.png")
    options = ["--cases", "2", "--steps", "1", "--stickers", str(folder), "--out", str(tmp_path / "out")]
    assert evaluation_command.main([str(tiny_model), *options, "--tasks", "remove", "reference_add"]) == 0
    table = capsys.readouterr().out
    assert "2 held-out cases for each task and group, stickers, 32 x 32 px, 1 evaluations" in table
    verdicts = json.loads((tmp_path / "out" / "verdicts.json").read_text())
    assert set(verdicts) == {"small", "copy the source", "edit a random object"}
    assert len(verdicts["small"]) == 8 and set(verdicts["copy the source"].values()) == {0}
    assert evaluation_command.main([str(tiny_model), "--stickers", str(tmp_path / "none")]) == 1
    assert "there is no sticker folder" in capsys.readouterr().err


def test_the_judge_reads_stickers_by_the_stickers_of_the_case(tmp_path: Path) -> None:
    for number, name in enumerate(("frog", "boat", "lamp", "drum")):
        art = np.zeros((40, 40, 4), np.uint8)
        art[4:36, 4:36] = (60 * number, 250 - 60 * number, 90, 255)
        art[4:12, 4 : 12 + 8 * number, 3] = 0
        Image.fromarray(art).save(tmp_path / f"{name}.png")
    config = with_stickers(tiny_recipe().synthesis((("replace", 1.0),)), tmp_path)
    judge = Judge()
    for case in held_out_cases(config, "replace", "several", 4):
        assert all(item.sprite.sticker for item in case.sample.plan.target.objects)
        assert judge.judge(case, case.sample.target).success
        assert not judge.judge(case, case.sample.source).success


def test_solver_tables_of_a_model_folder(loud_model: Path, monkeypatch) -> None:
    monkeypatch.setattr(small_solvers, "EVALUATIONS", (2, 4))
    monkeypatch.setattr(small_solvers, "JUDGED_EVALUATIONS", (1,))
    monkeypatch.setattr(small_solvers, "EXACT", Sampling(evaluations=20, schedule="linear"))
    monkeypatch.setattr(small_solvers, "SCHEDULES", {"linear": ("linear", None), "fixed 3": ("fixed", 3.0)})
    monkeypatch.setattr(small_solvers, "JUDGED", (("euler", "linear"),))
    monkeypatch.setattr(small_solvers, "BASE_TASKS", (("remove", 1.0),))
    monkeypatch.setattr(small_solvers, "LORA_TASKS", {"edit": (("reference_add", 1.0),)})
    monkeypatch.setattr(small_solvers, "JUDGED_CASES", 1)
    error, right = small_solvers.tables(loud_model)
    rows = {row[0]: row[1:] for row in error.rows}
    assert len(rows) == len(SOLVERS) * 2 and error.note.endswith("mean of 4 held-out cases")
    assert rows["euler / linear"][1] > rows["euler / linear"][0]
    assert all(0 <= share <= 100 for row in right.rows for share in row[1:])

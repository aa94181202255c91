"""Cases out, answers in, and the command that judges them."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pack.training.dataset import open_dataset
from pack.training.evaluation import cases as evaluation_cases
from pack.training.evaluation.cases import Case, cases_fingerprint, held_out_cases
from pack.training.evaluation.command import main, parser
from pack.training.evaluation.exchange import ASKED_FILE, Asked, write_cases
from pack.training.synthesis.config import recipe_for
from PIL import Image

from tests.conftest import ROOT

OPTIONS = ["--size", "32", "--cases", "3", "--tasks", "remove", "text_to_image"]
FEW = ["--cases", "1", "--tasks", "remove"]
ASKED = Asked(recipe="0" * 64, options="--size 32")


def answer(cases: Path, folder: Path, part: str) -> None:
    """Answers made of the `source` or the `target` of each case."""
    folder.mkdir()
    for sample in open_dataset(cases):
        image = sample.source if part == "source" and sample.source else sample.target
        image.save(folder / f"{sample.id}.png")


def test_answers_of_another_program_are_judged(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cases = tmp_path / "cases"
    assert main([*OPTIONS, "--write-cases", str(cases)]) == 0
    assert f"12 cases in {cases}" in capsys.readouterr().out
    answer(cases, tmp_path / "right", "target")
    answer(cases, tmp_path / "copies", "source")
    out = ["--out", str(tmp_path / "out")]
    folders = ["--answers", str(tmp_path / "right"), "--answers", str(tmp_path / "copies")]
    assert main([*OPTIONS, *folders, *out]) == 0
    table = capsys.readouterr().out
    assert (
        "| task | right, one | right, several | copies, one | copies, several | copy the source, one" in table
    )
    assert "| remove | 100 % (44-100) | 100 % (44-100) | 0 % (0-56) | 0 % (0-56) | 0 % (0-56) |" in table
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        "table.md",
        "verdicts.json",
        *(f"{task}-{group}.png" for task in ("remove", "text_to_image") for group in ("one", "several")),
    }
    assert "changed region" in (tmp_path / "out" / "table.md").read_text()


def test_faults_are_told_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*OPTIONS, "--answers", str(tmp_path)]) == 1
    assert "there is no answer" in capsys.readouterr().err
    cases = tmp_path / "cases"
    main([*OPTIONS, "--write-cases", str(cases)])
    answer(cases, tmp_path / "wrong", "target")
    first = sorted((tmp_path / "wrong").iterdir())[0]
    Image.new("RGB", (20, 10)).save(first)
    assert main([*OPTIONS, "--answers", str(tmp_path / "wrong")]) == 1
    assert "has 20x10 px, the case 32x32" in capsys.readouterr().err
    assert main(["--size", "32", "--tasks", "fly"]) == 1
    assert "there is no task 'fly'" in capsys.readouterr().err
    assert main(["--size", "32", "--tasks", "recolour", "--stickers", str(tmp_path)]) == 1
    assert "recolour cannot be judged with stickers" in capsys.readouterr().err


def test_answers_to_cases_of_another_recipe_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cases = tmp_path / "cases"
    assert main(["--size", "32", *FEW, "--write-cases", str(cases)]) == 0
    answer(cases, cases / "mine", "target")
    answer(cases, tmp_path / "copied", "target")
    shutil.copy(cases / ASKED_FILE, tmp_path / "copied")
    for folder in (cases / "mine", tmp_path / "copied"):
        capsys.readouterr()
        assert main(["--size", "36", *FEW, "--answers", str(folder)]) == 1
        told = capsys.readouterr()
        assert f"{folder} holds answers to the cases of `dev.py evaluate --size 32` (recipe " in told.err
        assert "Judged are those of `dev.py evaluate --size 36` (recipe " in told.err
        assert "Name the MODEL, --size and --stickers that the cases were written with" in told.err
        assert not told.out
        assert main(["--size", "32", *FEW, "--answers", str(folder)]) == 0
        told = capsys.readouterr()
        assert f"| remove | {'100 % (21-100) | ' * 2}" in told.out and "not certain" not in told.out


def test_answers_that_do_not_say_their_cases_are_doubted_above_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cases, answers, out = tmp_path / "cases", tmp_path / "mine", tmp_path / "out"
    main(["--size", "32", *FEW, "--write-cases", str(cases)])
    answer(cases, answers, "target")
    capsys.readouterr()
    judge = ["--size", "32", *FEW, "--answers", str(answers)]
    assert main([*judge, "--out", str(out)]) == 0
    for text in (capsys.readouterr().out, (out / "table.md").read_text(encoding="utf-8")):
        assert "the cases of `dev.py evaluate --size 32` (recipe " in text
        assert f"which is not certain: mine. No {ASKED_FILE} lies there or in the folder above; copy" in text
    (answers / ASKED_FILE).write_text("[]", encoding="utf-8")
    assert main(judge) == 1
    assert f"{ASKED_FILE} does not say which cases were asked. Copy the file again" in capsys.readouterr().err


def test_new_cases_are_not_written_around_answers_to_others(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cases = tmp_path / "cases"
    main(["--size", "32", *FEW, "--write-cases", str(cases)])
    answer(cases, cases / "mine", "target")
    assert main(["--size", "32", *FEW, "--write-cases", str(cases)]) == 0, "the same cases again"
    before = (cases / ASKED_FILE).read_bytes()
    assert main(["--size", "36", *FEW, "--write-cases", str(cases)]) == 1
    assert "holds cases of another recipe and mine beside them" in capsys.readouterr().err
    assert (cases / ASKED_FILE).read_bytes() == before and len(open_dataset(cases)) == 2
    shutil.rmtree(cases / "mine")
    assert main(["--size", "36", *FEW, "--write-cases", str(cases)]) == 0
    assert (cases / ASKED_FILE).read_bytes() != before


def test_recipes_with_the_same_cases_share_a_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe_for(32, 32)
    first = cases_fingerprint(config)
    trained = {"seed": 5, "split": "train", "tasks": (("move", 1.0),), "single_share": 0.4}
    assert cases_fingerprint(dataclasses.replace(config, **trained)) == first
    others = [
        dataclasses.replace(config, **other)
        for other in ({"objects": (1, 3)}, {"reference_size": 24}, {"twins": 0.0}, {"drag_share": 0.1})
    ]
    assert len({first, *map(cases_fingerprint, others)}) == 5
    for folder, side in (("here", 20), ("there", 20), ("other", 90)):
        (tmp_path / folder).mkdir()
        Image.effect_noise((side, side), 50).save(tmp_path / folder / "cat.png")
    shutil.copy(tmp_path / "here" / "cat.png", tmp_path / "there")
    here, there, other = (
        cases_fingerprint(dataclasses.replace(config, stickers_folder=str(tmp_path / folder)))
        for folder in ("here", "there", "other")
    )
    assert here == there and len({here, other, first}) == 3
    monkeypatch.setattr(evaluation_cases, "VERSION", evaluation_cases.VERSION + 1)
    assert cases_fingerprint(config) != first, "the same recipe draws other pictures"


def test_the_documented_commands_are_understood() -> None:
    page = (ROOT / "docs" / "small-model.md").read_text(encoding="utf-8")
    lines = [line.split("#")[0].split() for line in page.splitlines() if "dev.py evaluate " in line]
    read = [parser().parse_args(words[3:]) for words in lines if words[0] == "python"]
    assert any(options.write_cases for options in read) and any(options.answers for options in read)
    assert ASKED_FILE in page


def test_cases_are_not_written_over_other_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    own = tmp_path / "samples.jsonl"
    own.write_text("my own list\n", encoding="utf-8")
    assert main([*OPTIONS, "--write-cases", str(tmp_path)]) == 1
    assert "holds files that are not of this command" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [own]
    assert own.read_text(encoding="utf-8") == "my own list\n"
    assert main([*OPTIONS, "--write-cases", str(own)]) == 1
    assert "is a file" in capsys.readouterr().err


def test_cases_are_written_over_their_own_folder(tmp_path: Path) -> None:
    cases = tmp_path / "cases"
    cases.mkdir()
    for number in ("2", "1"):
        assert (
            main(["--size", "32", "--tasks", "remove", "--cases", number, "--write-cases", str(cases)]) == 0
        )
        assert len(open_dataset(cases)) == 2 * int(number)


def test_an_interrupted_list_of_cases_is_absent_and_can_be_written_again(tmp_path: Path) -> None:
    case = next(held_out_cases(recipe_for(32, 32), "remove", "one", 1))

    def broken() -> Iterator[Case]:
        yield case
        raise KeyboardInterrupt

    write_cases(tmp_path, [case], ASKED)
    with pytest.raises(KeyboardInterrupt):
        write_cases(tmp_path, broken(), ASKED)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("samples")]
    assert write_cases(tmp_path, [case], ASKED) == 1
    assert len(open_dataset(tmp_path)) == 1


def test_an_impossible_out_folder_is_told_before_the_first_case(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    for folder in (taken, taken / "below"):
        assert main([*OPTIONS, "--out", str(folder)]) == 1
        told = capsys.readouterr()
        assert f"{folder} cannot be made" in told.err and "remove-one" not in told.err
        assert not told.out


def test_tables_that_cannot_be_written_are_told_after_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "table.md").mkdir()
    assert main([*OPTIONS, "--out", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert "| remove |" in told.out and "table.md" in told.err

"""Cases out, answers in, and the command that judges them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pack.training.dataset import open_dataset
from pack.training.evaluation.cases import Case, held_out_cases
from pack.training.evaluation.command import main
from pack.training.evaluation.exchange import write_cases
from pack.training.synthesis.config import recipe_for
from PIL import Image

OPTIONS = ["--size", "32", "--cases", "3", "--tasks", "remove", "text_to_image"]


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

    write_cases(tmp_path, [case])
    with pytest.raises(KeyboardInterrupt):
        write_cases(tmp_path, broken())
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("samples")]
    assert write_cases(tmp_path, [case]) == 1
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

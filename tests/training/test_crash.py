"""What a user reads when the training process ends without a word, whichever way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kontext_runs import kontext_run
from pack.training.checkpoint import RunState, save_checkpoint
from pack.training.launch import LOG_START, TrainingError, log_tail, run_with_ladder
from pack.training.process import EXIT_OUT_OF_MEMORY

TRACE = "Traceback (most recent call last):\n  File ...\nKeyError: 'latent'\n"


@pytest.mark.parametrize(
    ("code", "written", "words"),
    [
        (-9, "", r"was killed by signal 9 \(SIGKILL\), which is what the system does when memory runs out\."),
        (-11, "Fatal Python error: Segmentation fault\n", r"was killed by signal 11 \(SIGSEGV\)\."),
        (-6, "Fatal Python error: Aborted\n", r"was killed by signal 6 \(SIGABRT\)\."),
        (-99, "", r"was killed by signal 99 \(unknown\)\."),
        (1, TRACE, r"ended with code 1: KeyError: 'latent'\."),
        (3221225477, "", r"ended with code 3221225477\."),
    ],
)
def test_the_end_its_last_line_and_where_the_run_goes_on(
    tmp_path: Path, code: int, written: str, words: str
) -> None:
    run, folder = kontext_run(tmp_path, steps=2), tmp_path / "run"
    old = f"{LOG_START}yesterday\nan old complaint\n"
    (folder / "worker.log").write_text(f"{old}{LOG_START}today\n{written}")

    def starts(*arguments: object) -> int:
        return code

    def message() -> str:
        with pytest.raises(TrainingError, match=rf"^the training process {words}") as caught:
            run_with_ladder(run, folder, encode=lambda config: None, heard=lambda event: None, start=starts)
        return str(caught.value)

    first = message()
    assert "queue the run again and it goes on from the start: no checkpoint yet." in first
    assert first.endswith(f"End of {folder / 'worker.log'}:\n{written}")
    save_checkpoint(folder / "checkpoints", RunState(step=7, tensors={}, data={}))
    assert "it goes on from step 7, its last checkpoint." in message()


def test_a_process_that_stops_by_itself_has_not_finished(tmp_path: Path) -> None:
    run, folder = kontext_run(tmp_path, steps=2), tmp_path / "run"

    def stops(run_file: object, place: Path, heard: Callable[[dict], None], processes: int) -> int:
        if not told:
            told.append("no memory")
            heard({"event": "out_of_memory", "step": 4, "message": "CUDA out of memory"})
            return EXIT_OUT_OF_MEMORY
        heard({"event": ends, "step": 5, "best_step": None})
        return 0

    told, ends = [], "finished"
    run_with_ladder(run, folder, encode=lambda config: None, heard=lambda event: None, start=stops)
    ends = "cancelled"
    with pytest.raises(TrainingError, match=r"stopped at step 5 without being asked.*it goes on from there"):
        run_with_ladder(run, folder, encode=lambda config: None, heard=lambda event: None, start=stops)


def test_a_log_without_a_start_is_shown_whole(tmp_path: Path) -> None:
    assert log_tail(tmp_path) == ""
    (tmp_path / "worker.log").write_text("last words\nExtension modules: numpy, torch\n")
    assert log_tail(tmp_path) == "last words\n"


def test_what_happened_stays_in_sight_above_the_stacks_of_many_threads(tmp_path: Path) -> None:
    stack = 'Thread 0x1 (most recent call first):\n  File "here.py", line 1 in wait\n'
    words = "Fatal Python error: Segmentation fault\n"
    (tmp_path / "worker.log").write_text(f"a warning\n{words}\n{stack * 200}")
    shown = log_tail(tmp_path)
    assert shown.startswith(f"{words}...\n") and shown.endswith(stack) and "a warning" not in shown
    (tmp_path / "worker.log").write_text(f"a warning\n{words}\n{stack}")
    assert log_tail(tmp_path) == f"a warning\n{words}\n{stack}"

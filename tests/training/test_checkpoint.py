"""Checkpoints: whole or absent, verified, pruned, and never lost to a kill."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from pack.training.checkpoint import (
    RunState,
    checkpoint_path,
    checkpoint_steps,
    load_checkpoint,
    load_newest,
    newest_data,
    put_aside_damaged,
    save_checkpoint,
)
from pack.training.metrics import MetricsFile, read_lines, read_metrics

from tests.training.toy import toy_config, toy_place, toy_trainer

Usage = namedtuple("Usage", "total used free")


def state(step: int) -> RunState:
    return RunState(step=step, tensors={"weight.a": torch.full((4,), float(step))}, data={"step": step})


def test_the_newest_two_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 7):
        save_checkpoint(tmp_path, state(step), best_step=2)
    assert checkpoint_steps(tmp_path) == [2, 5, 6]
    newest, messages = load_newest(tmp_path)
    assert (newest.step, messages) == (6, [])
    assert newest.tensors["weight.a"].tolist() == [6.0] * 4


class Killed(BaseException):
    """Takes the place of a kill: nothing handles it."""


@pytest.mark.parametrize("name", ["replace", "rmtree"])
@pytest.mark.parametrize("calls", range(6))
def test_a_kill_while_a_checkpoint_of_the_same_step_is_replaced_leaves_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, calls: int
) -> None:
    save_checkpoint(tmp_path, state(3))
    owner = os if name == "replace" else shutil
    real, left = getattr(owner, name), iter(range(calls))

    def killed(*arguments: object, **options: object) -> object:
        # The clean-up of a process that is killed does not happen either.
        if next(left, None) is None:
            raise Killed
        return real(*arguments, **options)

    newer = RunState(step=3, tensors={"weight.a": torch.full((4,), 7.0)}, data={"step": 7})
    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(owner, name, killed)
        save_checkpoint(tmp_path, newer)
    found, messages = load_newest(tmp_path)
    assert (found.step, messages, checkpoint_steps(tmp_path)) == (3, [], [3])
    assert newest_data(tmp_path) in ({"step": 3}, {"step": 7})
    assert found.tensors["weight.a"].tolist() == [float(found.data["step"])] * 4

    save_checkpoint(tmp_path, newer)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000003"]
    assert newest_data(tmp_path) == {"step": 7}


def test_a_checkpoint_put_aside_is_counted_pruned_and_known_as_damaged(tmp_path: Path) -> None:
    for step in range(1, 5):
        save_checkpoint(tmp_path, state(step))
        if step in (1, 2):
            checkpoint_path(tmp_path, step).rename(tmp_path / f".old-step-{step:09d}")
    assert checkpoint_steps(tmp_path) == [3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000003", "step-000000004"]
    checkpoint_path(tmp_path, 4).rename(tmp_path / ".old-step-000000004")
    (checkpoint_path(tmp_path, 4) / "state.json").write_text("{")
    assert load_newest(tmp_path)[0].step == 3
    put_aside_damaged(tmp_path, newer_than=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-step-000000004", "step-000000003"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs the kernel's list of maps")
def test_a_loaded_checkpoint_holds_its_file_no_more(tmp_path: Path) -> None:
    loaded = load_checkpoint(save_checkpoint(tmp_path, state(1)))
    assert loaded.tensors["weight.a"].tolist() == [1.0] * 4
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_checkpoint_is_passed_over_with_a_message(tmp_path: Path, file: str, damage: str) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step))
    path = checkpoint_path(tmp_path, 2) / file
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-3] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:])
    newest, messages = load_newest(tmp_path)
    assert newest.step == 1
    assert len(messages) == 1
    assert "is damaged" in messages[0]
    assert "it is passed over" in messages[0]
    with pytest.raises(ValueError, match="is damaged"):
        load_checkpoint(checkpoint_path(tmp_path, 2))


def test_the_newest_data_is_read_without_the_tensors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert newest_data(tmp_path) is None
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state(step))
    for step in (2, 3):
        (checkpoint_path(tmp_path, step) / "state.safetensors").write_bytes(b"not read")
    assert newest_data(tmp_path) == {"step": 3}
    words = checkpoint_path(tmp_path, 3) / "state.json"
    words.write_text(words.read_text().replace("3", "9"))
    assert newest_data(tmp_path) == {"step": 2}
    assert "is damaged: state.json changed since it was written; it is passed over" in caplog.text
    (checkpoint_path(tmp_path, 2) / "manifest.json").unlink()
    assert newest_data(tmp_path) is None


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, state(1))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 100, 8))
    with pytest.raises(OSError, match=r"a checkpoint needs .* MiB are free"):
        save_checkpoint(tmp_path, state(2))
    assert checkpoint_steps(tmp_path) == [1]
    assert not list(tmp_path.glob(".partial-*"))


def test_a_run_on_a_full_disk_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, events = toy_trainer(toy_config(steps=4), toy_place(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 100, 8))
    assert trainer.run() == "finished"
    failed = [event for event in events if event["event"] == "save_failed"]
    assert failed
    assert "Free some space" in failed[0]["message"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_at_fifty_random_moments_loses_no_more_than_one_interval(tmp_path: Path) -> None:
    # In a process of its own, because a process that has run a backward pass cannot be forked safely.
    root = Path(__file__).resolve().parents[2]
    code = "import sys; sys.path.insert(0, sys.argv[1]); import tests.conftest; "
    code += "from tests.training.kill_fifty import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, str(root), str(tmp_path)], capture_output=True, text=True, timeout=250
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout.split()[-1]) > 10


def test_the_diary_survives_a_torn_line_and_counts_repeated_steps_once(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path)
    for step in range(1, 5):
        metrics.append({"event": "step", "step": step, "loss": float(step)})
    metrics.append({"event": "step", "step": 5, "loss": float("nan")})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "st')
    again = MetricsFile(tmp_path)
    again.append({"event": "started", "step": 3})
    again.append({"event": "step", "step": 4, "loss": 0.5})
    again.close()
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 7
    steps = [event for event in read_metrics(tmp_path) if event["event"] == "step"]
    assert [(event["step"], event["loss"]) for event in steps] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 0.5)]

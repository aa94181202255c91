"""The training process as it is really started: an interpreter, a folder, JSON lines."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kontext_runs import in_this_process, kontext_run
from pack.training import launch, process
from pack.training.checkpoint import RunState, checkpoint_steps, save_checkpoint
from pack.training.launch import TrainingError, Worker, half_written, run_once, run_with_ladder
from pack.training.metrics import read_metrics
from pack.training.process import chosen_device
from pack.training.recipes.command import parser as recipe_parser
from pack.training.run_file import run_lock
from safetensors.torch import load_file


class Stop(Exception):
    """As ComfyUI raises it where a node asks whether it was cancelled."""


def test_the_process_trains_tells_is_cancelled_and_continues(
    tmp_path: Path,
) -> None:
    run, folder, heard = kontext_run(tmp_path, steps=100_000), tmp_path / "run", []

    def listen(event: dict[str, Any] | None) -> None:
        heard.append(event)
        if event and event["event"] == "step" and event["step"] >= 3:
            raise Stop

    with pytest.raises(Stop):
        run_once(run, folder, listen)
    kinds = [event["event"] for event in heard if event]
    assert kinds[:3] == ["plan", "started", "stage"]
    assert "memory plan (estimate)" in heard[[e and e["event"] for e in heard].index("plan")]["text"]
    stopped = checkpoint_steps(folder / "checkpoints")[-1]
    assert stopped >= 3
    assert read_metrics(folder)[-1]["event"] == "cancelled"

    longer = dataclasses.replace(run.config.stages[0], steps=stopped + 2)
    again = dataclasses.replace(run, config=dataclasses.replace(run.config, stages=(longer,)))
    (folder / "cancel").unlink()  # as a new Worker does
    assert in_this_process(again, folder, heard.append, 1) == 0
    assert [e["step"] for e in read_metrics(folder) if e["event"] == "started"] == [0, stopped]
    assert read_metrics(folder)[-1] | {"time": 0} == {
        "event": "finished", "step": stopped + 2, "best_step": None, "time": 0,
    }  # fmt: skip
    lora = load_file(folder / "exports" / "last.safetensors")
    assert "transformer.transformer_blocks.0.attn.to_q.lora_A.weight" in lora
    steps = [e["step"] for e in read_metrics(folder) if e["event"] == "step"]
    assert steps == list(range(1, stopped + 3))


def test_a_refused_run_ends_with_its_reason(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    run, folder = kontext_run(tmp_path, steps=2, base=tmp_path / "gone.safetensors"), tmp_path / "run"
    run.write(folder)
    assert process.main(folder) == process.EXIT_REFUSED
    (line,) = capfd.readouterr().out.splitlines()
    assert "no base model" in json.loads(line)["message"]
    assert [event["event"] for event in read_metrics(folder)] == ["error"]

    def start(run, folder, heard, processes):
        heard({"event": "error", "step": 0, "message": "no base model"})
        (folder / "worker.log").write_text("last words")
        return process.EXIT_REFUSED

    with pytest.raises(TrainingError, match=r"(?s)^no base model\n\nEnd of .*worker\.log:\nlast words"):
        run_with_ladder(run, folder, encode=lambda config: None, heard=lambda event: None, start=start)


def test_a_new_worker_takes_the_marks_of_the_last_one_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "command", lambda worker: [sys.executable, "-c", "pass"])
    marks = [tmp_path / "cancel", tmp_path / "memory-ran-out"]
    for mark in marks:
        mark.touch()
    with Worker(tmp_path) as worker:
        assert not any(mark.exists() for mark in marks)
        assert worker.process is not None
        worker.process.wait()


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    lock = run_lock(tmp_path / "run")
    try:
        with pytest.raises(BlockingIOError, match="another process is training the run 'run'"):
            run_lock(tmp_path / "run")
    finally:
        lock.release()
    run_lock(tmp_path / "run").release()


def test_no_cuda_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="wants a CUDA device and PyTorch finds none") as told:
        chosen_device("cuda", 0)
    assert "restart ComfyUI" in str(told.value) and "preset" not in str(told.value)
    assert "`dev.py train-small`: add --device cpu" in str(told.value)
    assert recipe_parser().parse_args(["--device", "cpu"]).device == "cpu", "the advice can be followed"


class Clock:
    """A monotonic clock that is moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_cancel_file_a_signal_or_a_dead_owner_stop_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(process, "time", SimpleNamespace(time=time.time, monotonic=clock))
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        alone = process.cancel_watch(tmp_path, watch_parent=False)
        assert not alone()
        (tmp_path / "cancel").touch()
        assert alone()
        (tmp_path / "cancel").unlink()
        owned = process.cancel_watch(tmp_path, watch_parent=True)
        assert owned()  # no heartbeat at all
        (tmp_path / "heartbeat").touch()
        assert not owned()
        old = time.time() - process.HEARTBEAT_LIMIT - 1
        os.utime(tmp_path / "heartbeat", (old, old))
        assert not owned(), "a computer that slept: its owner has not beaten yet"
        clock.now += process.SECOND_LOOK - 1
        assert not owned()
        (tmp_path / "heartbeat").touch()
        assert not owned()
        os.utime(tmp_path / "heartbeat", (old - 5, old - 5))
        assert not owned(), "what was suspected before counts no more"
        clock.now += process.SECOND_LOOK + 1
        assert owned()
        told = process.cancel_watch(tmp_path, watch_parent=False)
        signal.raise_signal(signal.SIGTERM)
        assert told()
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


class Saving:
    """A process that writes a little more of a checkpoint at each look, and ends or hangs after `looks`."""

    def __init__(self, folder: Path, looks: int, ends: bool) -> None:
        self.partial, self.looks, self.ends, self.looked = folder / ".partial-1", looks, ends, 0
        self.partial.mkdir(parents=True)

    def poll(self) -> int | None:
        self.looked += 1
        if self.looked < self.looks:
            with (self.partial / "state.safetensors").open("ab") as file:
                file.write(b"more")
        return 0 if self.ends and self.looked >= self.looks else None


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("place", ["checkpoints", "exports"])
def test_a_cancel_waits_for_a_large_save_while_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, ends: bool
) -> None:
    monkeypatch.setattr(launch, "CANCEL_SECONDS", 0.2)
    worker, killed = Worker(tmp_path), []
    saving = Saving(tmp_path / place, looks=20, ends=ends)
    monkeypatch.setattr(worker, "process", saving)
    monkeypatch.setattr(worker, "stop", lambda: killed.append(saving.looked))
    began = time.monotonic()
    worker.cancel()
    assert time.monotonic() - began > 4 * launch.CANCEL_SECONDS
    assert saving.looked >= 20
    assert bool(killed) != ends, "only what hangs is killed"


def test_a_checkpoint_shows_life_while_it_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pack.training import checkpoint, files

    seen, mark = [], checkpoint.mark

    def marked(folder: Path) -> None:
        os.utime(folder, (0, 0))
        before = half_written(tmp_path)
        mark(folder)
        seen.append(half_written(tmp_path) != before)

    monkeypatch.setattr(files, "CHUNK", 1024)
    monkeypatch.setattr(checkpoint, "mark", marked)
    state = RunState(step=1, tensors={"weight.a": torch.zeros(1024)}, data={})
    save_checkpoint(tmp_path / "checkpoints", state)
    assert len(seen) > 4 and all(seen)
    assert half_written(tmp_path) == {}


def test_two_processes_equal_one_at_the_same_global_batch(tmp_path: Path) -> None:
    results = []
    for processes in (1, 2):
        place = tmp_path / str(processes)
        place.mkdir()
        run = kontext_run(place, steps=2, batch_size=2, gradient_accumulation=2)
        if processes == 2 and not torch.cuda.is_available():
            run = dataclasses.replace(run, device="auto")
        heard = []
        code = (in_this_process if processes == 1 else run_once)(run, place / "run", heard.append, processes)
        assert code == 0, (place / "run" / "worker.log").read_text()[-1500:]
        events = list(read_metrics(place / "run"))
        # A launcher may quietly start one process only.
        assert [e["processes"] for e in events if e["event"] == "started"] == [processes]
        losses = [event["loss"] for event in events if event["event"] == "step"]
        results.append((losses, load_file(place / "run" / "exports" / "last.safetensors")))
    (one_losses, one), (two_losses, two) = results
    assert two_losses == pytest.approx(one_losses, rel=1e-4)
    assert len(two_losses) == 2
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=2e-6)

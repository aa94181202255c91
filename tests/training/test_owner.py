"""Whoever started the training process may die, and the disk may fill up: what was learnt is kept."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from kontext_runs import kontext_run
from pack.training.checkpoint import checkpoint_steps
from pack.training.config import OutputConfig
from pack.training.launch import Worker
from pack.training.metrics import read_metrics
from pack.training.process import HEARTBEAT_LIMIT, Talk
from pack.training.run_file import HEARTBEAT, LOG

from tests.training.test_resume import full_disk

INTERVAL = 1_000_000
PATIENCE = 600


def wait_for(ready: Callable[[], object], what: str, folder: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not ready():
        log = folder / LOG
        assert time.monotonic() < end, f"no {what}: {log.read_text()[-1500:] if log.is_file() else ''}"
        time.sleep(0.05)


def reached(folder: Path) -> int:
    """The last step in the diary."""
    return max((event["step"] for event in read_metrics(folder) if event["event"] == "step"), default=0)


def beating_until(folder: Path, moment: float) -> None:
    """A heartbeat that is too old after `moment`."""
    (folder / HEARTBEAT).touch()
    last = moment - HEARTBEAT_LIMIT
    os.utime(folder / HEARTBEAT, (last, last))


@pytest.mark.timeout(2 * PATIENCE)
def test_a_run_whose_owner_died_goes_on_until_it_misses_the_heartbeat_and_keeps_its_steps(
    tmp_path: Path,
) -> None:
    folder, run = tmp_path / "run", kontext_run(tmp_path, steps=INTERVAL)
    output = OutputConfig(checkpoint_every=INTERVAL, sample_every=0)
    config = dataclasses.replace(run.config, output=output)
    dataclasses.replace(run, config=config, watch_parent=True).write(folder)
    beating_until(folder, time.time() + PATIENCE)
    with (folder / LOG).open("w") as log:
        process = subprocess.Popen(Worker(folder).command(), stdout=subprocess.PIPE, stderr=log)
    try:
        wait_for(lambda: reached(folder) >= 3, "step", folder)
        assert process.stdout is not None
        process.stdout.close()  # all that the process sees at once when its owner is killed
        alone = reached(folder)
        wait_for(lambda: reached(folder) >= alone + 5 or process.poll() is not None, "step alone", folder)
        assert process.poll() is None, (folder / LOG).read_text()[-1500:]
        beating_until(folder, time.time() - 1)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
    assert read_metrics(folder)[-1]["event"] == "cancelled"
    assert checkpoint_steps(folder / "checkpoints") == [reached(folder)]
    assert "Traceback" not in (folder / LOG).read_text()


def test_a_full_disk_costs_the_diary_lines_and_never_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    steps = [{"event": "step", "step": step, "note": "x" * 300} for step in range(100)]
    with closing(Talk(tmp_path, is_main=True)) as talk, full_disk(2_000):
        for event in steps:
            talk(event)
    told = [json.loads(line)["step"] for line in sys.stdout.getvalue().splitlines()]
    assert told == list(range(100)), "who listens is told all the same"
    assert caplog.text.count("the diary cannot be written, the run goes on without it") == 1
    with closing(Talk(tmp_path, is_main=True)) as talk:
        talk({"event": "step", "step": 100})
    kept = [event["step"] for event in read_metrics(tmp_path)]
    assert kept[:3] == [0, 1, 2] and kept[-1] == 100


def test_a_diary_that_cannot_be_closed_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    talk = Talk(tmp_path, is_main=True)
    with full_disk(10):
        talk({"event": "finished", "step": 3})
        talk.close()
    assert "the end of the diary is lost" in caplog.text


def test_nobody_listening_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with closing(Talk(tmp_path, is_main=True)) as talk, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", os.fdopen(writer, "w"))
        talk({"event": "step", "step": 1})
        print("a library's word", flush=True)
        talk({"event": "step", "step": 2})
        sys.stdout.close()
    assert [event["step"] for event in read_metrics(tmp_path)] == [1, 2]

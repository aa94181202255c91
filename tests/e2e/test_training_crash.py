"""A training process dies in every way while a real server runs its node: the run goes on afterwards."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from live_server import LiveServer
from pack.host.client import Prompt, describe_failure
from pack.training.checkpoint import checkpoint_steps
from pack.training.metrics import read_metrics

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not Path("/proc/self/cmdline").is_file(), reason="finds processes in /proc"),
]

STEPS = 80
EVERY = STEPS // 8
PATIENCE = 1800


def training_prompt(live_server: LiveServer, steps: int) -> Prompt:
    """The shipped workflow, long enough to be caught, as a run of its own."""
    prompt = json.loads(json.dumps(live_server.prompt("train-edit-lora")))
    for node in prompt.values():
        if node["class_type"] == "DreamOmniTrainLoRA":
            node["inputs"] |= {"steps": steps, "run_name": "crashing"}
    return prompt


def wait_for(ready: Callable[[], object], what: str) -> object:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = ready()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}")


def worker_process(folder: Path) -> int | None:
    """The process that trains in `folder`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(folder).encode() in words and any(word.endswith(b"worker.py") for word in words):
                return int(entry.name)
    return None


def reached(folder: Path) -> int:
    """The last step in the diary."""
    if not (folder / "metrics.jsonl").is_file():
        return 0
    return max((event["step"] for event in read_metrics(folder) if event["event"] == "step"), default=0)


def failure_after(live_server: LiveServer, folder: Path, harm: Callable[[int], None]) -> str:
    """Queue the run, harm its process, and return what the node says; the server must live and answer."""
    server = live_server.server.process
    assert server is not None
    entry = live_server.client.queue(training_prompt(live_server, STEPS))
    harm(int(wait_for(lambda: worker_process(folder), "the training process")))
    failure = describe_failure(live_server.client.wait(entry, PATIENCE))
    assert server.poll() is None
    assert live_server.client.get("/system_stats")["system"]
    assert worker_process(folder) is None
    return failure


@pytest.mark.timeout(PATIENCE)
def test_the_server_outlives_every_end_of_the_training_process(live_server: LiveServer) -> None:
    folder = live_server.server.base / "output" / "dreamomni" / "training" / "crashing"

    def signalled(number: int) -> Callable[[int], None]:
        start = max(checkpoint_steps(folder / "checkpoints"), default=0)

        def harm(process: int) -> None:
            wait_for(lambda: reached(folder) >= start + EVERY + 3, "steps")
            os.kill(process, number)

        return harm

    last = 0
    for number, trace in (
        (signal.SIGKILL, ""),
        (signal.SIGSEGV, "Fatal Python error: Segmentation fault"),
        (signal.SIGABRT, "Fatal Python error: Aborted"),
    ):
        failure = failure_after(live_server, folder, signalled(number))
        kept = checkpoint_steps(folder / "checkpoints")[-1]
        assert "TrainingError" in failure
        assert f"was killed by signal {number.value} ({number.name})" in failure
        assert f"goes on from step {kept}, its last checkpoint" in failure
        assert f"End of {folder / 'worker.log'}:" in failure
        assert trace in failure
        assert kept >= last + EVERY
        last = kept

    def spoil(process: int) -> None:
        """Its task is unreadable before it has got as far as reading it: an exception nobody expects."""
        (folder / "run.json").write_text("junk")

    failure = failure_after(live_server, folder, spoil)
    assert "ended with code 1: json.decoder.JSONDecodeError: " in failure
    assert "Traceback (most recent call last)" in failure
    assert "Fatal Python error" not in failure, "the log of an earlier process"

    outputs = live_server.client.run(training_prompt(live_server, last + 2), seconds=PATIENCE)
    assert live_server.pictures(outputs)
    starts = [event["step"] for event in read_metrics(folder) if event["event"] == "started"]
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert (len(starts), starts[-1]) == (4, last)
    assert read_metrics(folder)[-1]["event"] == "finished"

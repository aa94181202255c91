"""Any run can be looked at afterwards: by wire, or by name when it was cancelled or failed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.host

CONNECTED = "the connected run"
STEP = {"loss": 0.5, "smoothed": 0.5, "learning_rate": 1e-4, "gradient_norm": 1.0, "seconds": 2.0}


def write_run(output: Path, name: str, time: int, *ending: dict[str, Any]) -> Path:
    """A run of one step, last heard of at `time` in seconds."""
    folder = output / "dreamomni" / "training" / name
    (folder / "samples").mkdir(parents=True)
    Image.new("RGB", (64, 16)).save(folder / "samples" / "step-000000000-0.png")
    events = [{"event": "started", "step": 0, "total": 10}, {"event": "step", "step": 1, **STEP}, *ending]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    os.utime(folder / "metrics.jsonl", (time, time))
    return folder


def report(*args: Any, **inputs: Any) -> tuple[Any, ...]:
    from pack.nodes.training_report import TrainingReport

    return TrainingReport.execute(*args, **inputs).args


def test_runs_with_a_diary_are_offered_newest_first(output_dir: Path) -> None:
    from pack.nodes.training_report import TrainingReport

    def offered() -> list[str]:
        return TrainingReport.define_schema().inputs[-1].options

    assert offered() == [CONNECTED]
    write_run(output_dir, "old", 100)
    write_run(output_dir, "new", 200)
    (output_dir / "dreamomni" / "training" / "never started").mkdir()
    (output_dir / "dreamomni" / "training" / "stray.txt").touch()
    assert offered() == [CONNECTED, "new", "old"]


def test_an_older_graph_and_one_without_a_wire_are_valid() -> None:
    from pack.nodes.training_report import TrainingReport

    inputs = TrainingReport.INPUT_TYPES()
    assert list(inputs["optional"]) == ["run", "run_name"] and not inputs.get("required")


def test_a_failed_run_is_shown_by_name_and_a_finished_one_by_wire(output_dir: Path) -> None:
    from pack.nodes.training_folders import TrainingRun

    write_run(output_dir, "failed", 100, {"event": "error", "step": 1, "message": "the loss diverged"})
    finished = TrainingRun(write_run(output_dir, "finished", 200, {"event": "finished", "step": 10}))
    chart, samples, text = report(run_name="failed")
    assert chart.shape == (1, 540, 960, 3) and samples.shape == (1, 16, 64, 3)
    assert "run failed: step 1 of 10" in text and "the loss diverged" in text
    assert "last event: error" in text
    assert "last event: finished" in report(finished)[2]
    assert "run failed" in report(finished, run_name="failed")[2], "a name goes before the wire"


def test_the_last_line_names_the_last_event_whatever_the_dataset_check_said(output_dir: Path) -> None:
    folder = write_run(output_dir, "noted", 100, {"event": "finished", "step": 10})
    (folder / "dataset.json").write_text(json.dumps({"text": "4 samples\nsample 2 is blurred"}))
    lines = report(run_name="noted")[2].splitlines()
    assert lines[-3:] == ["4 samples", "sample 2 is blurred", "last event: finished"]


def test_no_run_a_run_without_a_diary_and_a_name_outside_are_refused(output_dir: Path) -> None:
    from pack.nodes.training_folders import TrainingRun

    write_run(output_dir, "mine", 100)
    write_run(output_dir.parent / "elsewhere", "other", 100)
    with pytest.raises(ValueError, match="no run to show; connect a training node's run, or choose one"):
        report()
    with pytest.raises(FileNotFoundError, match=r"'gone' has no diary .*Runs with one: mine"):
        report(run_name="gone")
    with pytest.raises(FileNotFoundError, match="'moved' has no diary"):
        report(TrainingRun(output_dir / "dreamomni" / "training" / "moved"))
    for name in ("../../../elsewhere/dreamomni/training/other", "..", str(output_dir), ""):
        with pytest.raises(ValueError, match="cannot be a folder name"):
            report(run_name=name)


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ([], "none measured yet"),
        ([{"event": "stage", "step": 0, "held_out": 10}], "none measured yet"),
        ([{"event": "stage", "step": 0, "held_out": 0}], "fewer than four samples could be held out"),
        ([{"event": "validation", "step": 1, "loss": float("nan")}], "what was measured is not a number"),
    ],
)
def test_why_there_is_no_held_out_loss(output_dir: Path, events: list[dict[str, Any]], why: str) -> None:
    write_run(output_dir, "mine", 100, *events)
    assert f"no held-out loss: {why}\n" in report(run_name="mine")[2]

"""What the dataset check finds, the memory plan and the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pack.training.config import MemoryConfig, RunConfig, StageConfig
from pack.training.dataset import open_dataset
from pack.training.doctor import examine
from pack.training.memory import Footprint, plan_text, planned_bytes
from pack.training.metrics import MetricsFile
from pack.training.report import loss_chart, run_summary, sample_strips
from PIL import Image


def write(folder: Path, samples: list[dict]) -> Path:
    """Pictures named by their colour, and the lines."""
    lines = []
    for number, sample in enumerate(samples):
        line = {"task": "add", "instruction": "do it", "id": str(number), "references": []} | sample
        for name in filter(None, [line.get("source"), line["target"], *line["references"]]):
            shade, _, size = name.removesuffix(".png").partition("-")
            width, height = (int(side) for side in (size or "64x64").split("x"))
            Image.new("RGB", (width, height), (int(shade),) * 3).save(folder / name)
        lines.append(json.dumps(line) + "\n")
    (folder / "samples.jsonl").write_text("".join(lines))
    return folder


GOOD = {"source": "1.png", "target": "2.png"}


@pytest.mark.parametrize(
    ("samples", "fault"),
    [
        ([{"source": "1.png", "target": "1-64x64.png"}], "source and target are the same picture: 0"),
        (
            [{"source": "1.png", "target": "1-64x64.png", "task": "identity"}],
            "source and target are the same picture: 0",
        ),
        ([GOOD, {**GOOD, "target": "3.png", "id": "0"}], "the same id is used twice: 0"),
        (
            [GOOD | {"references": [f"{shade}.png" for shade in range(10, 15)]}],
            "more than 5 pictures: 0",
        ),
    ],
)
def test_faults_stop_the_run(tmp_path: Path, samples: list[dict], fault: str) -> None:
    found = examine(open_dataset(write(tmp_path, samples)), "edit", lambda done, total: None)
    with pytest.raises(ValueError, match=f"cannot be trained on:\n(.*\n)*{fault}"):
        found.require_healthy()


def test_a_picture_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    folder = write(tmp_path, [GOOD, {"source": "3.png", "target": "4.png"}])
    (folder / "4.png").write_bytes(b"no picture")
    found = examine(open_dataset(folder), "edit", lambda done, total: None)
    assert found.faults[0].startswith("cannot be read: 1 (")


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([GOOD | {"references": ["2-64x64.png"]}], "the target is also given as a reference: 0"),
        ([GOOD | {"references": ["1.png"]}], "a picture is given twice in one sample: 0"),
        ([{"source": "1-128x64.png", "target": "2.png"}], "the source is shaped unlike the target: 0"),
        ([{"source": "1-16x16.png", "target": "2-16x16.png"}], "a side is under 32 px: 0"),
        ([{"source": "1-900x64.png", "target": "2-900x64.png"}], "longer than 8:1"),
        ([GOOD, {"source": "3.png", "target": "2.png"}], "equal targets, kept on one side"),
        ([GOOD, {"source": "2.png", "target": "4.png"}], "the source of 1 is another sample's target"),
    ],
)
def test_doubts_are_noted(tmp_path: Path, samples: list[dict], words: str) -> None:
    found = examine(open_dataset(write(tmp_path, samples)), "edit", lambda done, total: None)
    found.require_healthy()
    assert words in found.text()


def test_a_good_dataset_has_nothing_to_say(tmp_path: Path) -> None:
    found = examine(open_dataset(write(tmp_path, [GOOD])), "edit", lambda done, total: None)
    assert found.text() == "1 samples looked over"


def test_the_plan_counts_what_lies_where() -> None:
    size = Footprint(parameters=12 * 2**30, trainable=2**20, blocks=57, width=3072)
    config = RunConfig(
        name="x", family="kontext", memory=MemoryConfig(precision="fp8"), stages=(StageConfig(batch_size=2),)
    )
    parts = planned_bytes(config, size, tokens=1000)
    assert parts["base on the device"] == 12 * 2**30
    assert parts["kept activations on the device"] == 1000 * 2 * 3072 * 2 * 57
    assert parts["trained weights and optimizer"] == 16 * 2**20
    streamed = MemoryConfig(precision="fp8", stream_base=True, offload_activations=True)
    moved = planned_bytes(RunConfig(name="x", family="kontext", memory=streamed), size, tokens=1000)
    assert moved["base on the device"] == moved["kept activations on the device"] == 0
    assert "12.00 GiB" in plan_text(config, size, 1000)
    assert "estimate" in plan_text(config, size, 1000)


def test_a_report_is_drawn_from_the_diary_alone(tmp_path: Path) -> None:
    empty = loss_chart(tmp_path)
    assert empty.size == (960, 540)
    assert "not started" in run_summary(tmp_path)
    diary = MetricsFile(tmp_path)
    diary.append({"event": "started", "step": 0, "total": 30})
    for step in range(1, 21):
        event = {"event": "step", "step": step, "loss": 1 / step, "smoothed": 1 / step, "seconds": 2.0}
        diary.append(event | {"gradient_norm": 0.5, "learning_rate": 1e-4, "peak_bytes": 3 * 2**30})
    diary.append({"event": "validation", "step": 10, "loss": 0.4, "best": True})
    diary.append({"event": "validation", "step": 20, "loss": 0.5, "best": False})
    diary.append({"event": "ladder", "step": 20, "message": "out of memory: references shrink to 384 px"})
    diary.close()
    assert loss_chart(tmp_path).tobytes() != empty.tobytes()
    text = run_summary(tmp_path)
    for words in ("step 20 of 30", "2.00 s a step, 0 min to go", "peak memory 3.00 GiB"):
        assert words in text
    assert "held-out loss 0.5, best 0.4 at step 10" in text
    assert "references shrink to 384 px" in text


def test_the_reported_best_is_the_one_that_is_kept(tmp_path: Path) -> None:
    diary = MetricsFile(tmp_path)
    for step, loss, best in ((10, 0.4, True), (20, 0.3, True), (30, 0.6, True), (40, 0.7, False)):
        if step == 30:
            diary.append({"event": "best_forgotten", "step": 20})
            diary.append({"event": "stage", "step": 20, "stage": 1, "held_out": 4})
            found = "held-out loss 0.3, the best is looked for anew from step 20\n"
            assert found in run_summary(tmp_path)
        diary.append({"event": "validation", "step": step, "loss": loss, "best": best})
    diary.close()
    assert "held-out loss 0.7, best 0.6 at step 30" in run_summary(tmp_path)
    never = MetricsFile(tmp_path / "never")
    never.append({"event": "validation", "step": 10, "loss": 0.4, "best": False})
    never.close()
    assert "held-out loss 0.4\n" in run_summary(tmp_path / "never")


def test_strips_are_of_the_first_and_the_newest_drawing(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for step in (0, 5, 10):
        for number in (0, 1):
            Image.new("RGB", (2, 2)).save(tmp_path / "samples" / f"step-{step:09d}-{number}.png")
    names = [path.name for path in sample_strips(tmp_path)]
    assert names == [f"step-{step:09d}-{number}.png" for step in (0, 10) for number in (0, 1)]

"""What a run does where memory runs out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kontext_runs import in_this_process, kontext_run
from pack.training import process
from pack.training.config import (
    MemoryConfig,
    RunConfig,
    StageConfig,
)
from pack.training.encode import read_manifest
from pack.training.files import write_text
from pack.training.ladder import laddered
from pack.training.launch import TrainingError, run_with_ladder
from pack.training.memory import next_rung
from pack.training.metrics import read_metrics
from pack.training.process import EXIT_OUT_OF_MEMORY
from pack.training.run_file import RunFile
from pack.training.trainer import RunFolder


def test_out_of_memory_walks_down_the_ladder_three_times_at_most_and_remembers(tmp_path: Path) -> None:
    run = kontext_run(tmp_path, steps=2, resolution=1024)
    seen, told, encoded = [], [], []

    def starving(run_file, folder, heard, processes):
        seen.append(run_file.config)
        heard({"event": "out_of_memory", "step": 1, "message": "CUDA out of memory"})
        return EXIT_OUT_OF_MEMORY

    with pytest.raises(TrainingError, match="CUDA out of memory"):
        run_with_ladder(run, tmp_path / "run", encode=encoded.append, heard=told.append, start=starving)
    assert len(seen) == len(encoded) == 4
    assert not seen[0].memory.offload_activations
    assert seen[1].memory.offload_activations
    assert seen[2].memory.stream_base
    assert [event["restart"] for event in told if event["event"] == "ladder"] == [1, 2, 3]
    diary = [event["message"] for event in read_metrics(tmp_path / "run") if event["event"] == "ladder"]
    assert diary == [event["message"] for event in told if event["event"] == "ladder"]
    assert diary[0].startswith("out of memory: ")
    continued = laddered(run.config, tmp_path / "run")
    assert continued.memory.stream_base


@pytest.mark.parametrize("how", ["while loading", "in another process"])
def test_memory_may_run_out_while_loading_and_in_any_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    run, folder, codes = kontext_run(tmp_path, steps=1), tmp_path / "run", []

    def no_room(*arguments: object) -> None:
        kind = torch.OutOfMemoryError if how == "while loading" else RuntimeError
        raise kind("CUDA error: out of memory")

    def start(run_file: RunFile, folder: Path, heard: Any, processes: int) -> int:
        (folder / "memory-ran-out").unlink(missing_ok=True)  # as a new Worker does
        with monkeypatch.context() as patched:
            if len(codes) == 0:
                patched.setattr(process, "Session", no_room)
            codes.append(in_this_process(run_file, folder, heard, processes))
        # A launcher of several processes ends with a code of its own.
        return 1 if codes[-1] and how == "in another process" else codes[-1]

    config = run_with_ladder(run, folder, encode=lambda c: None, heard=lambda e: None, start=start)
    assert codes == [EXIT_OUT_OF_MEMORY, 0]
    assert config.memory.offload_activations
    assert [e["message"] for e in read_metrics(folder) if e["event"] == "out_of_memory"] == [
        "CUDA error: out of memory"
    ]


def test_the_ladder_goes_from_recomputing_to_smaller_targets() -> None:
    config = RunConfig(
        name="x",
        family="kontext",
        stages=(StageConfig(resolution=512),),
        memory=MemoryConfig(gradient_checkpointing=False),
    )
    words = []
    while (rung := next_rung(config)) is not None:
        config, said = rung
        words.append(said)
    assert words == [
        "activations are recomputed",
        "kept activations move to host memory",
        "the base moves to host memory and is streamed",
        "references shrink to 384 px",
        "references shrink to 256 px",
        "targets shrink to 384 px",
        "targets shrink to 256 px",
    ]
    assert config.reference_resolution == 256


@pytest.mark.parametrize(
    ("has_source", "rungs"),
    [
        (True, ["targets shrink to 384 px", "targets shrink to 256 px"]),
        (False, ["references shrink to 384 px", "references shrink to 256 px", "targets shrink to 384 px"]),
    ],
)
def test_nothing_is_tried_that_frees_nothing(tmp_path: Path, has_source: bool, rungs: list[str]) -> None:
    run, folder = kontext_run(tmp_path, steps=2, resolution=512), tmp_path / "run"
    memory = dataclasses.replace(run.config.memory, offload_activations=True, stream_base=True)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, memory=memory))
    place = RunFolder(folder=folder, cache=Path(run.cache))
    entries = [dataclasses.replace(e, has_source=has_source) for e in read_manifest(place.manifest(32))]
    lines = "".join(json.dumps(dataclasses.asdict(entry)) + "\n" for entry in entries)

    def encode(config: RunConfig) -> None:
        write_text(place.manifest(config.stages[0].resolution), lines)

    def starving(run_file: RunFile, folder: Path, heard: Any, processes: int) -> int:
        return EXIT_OUT_OF_MEMORY

    with pytest.raises(TrainingError):
        run_with_ladder(run, folder, encode=encode, heard=lambda event: None, start=starving)
    said = [event["message"] for event in read_metrics(folder) if event["event"] == "ladder"]
    assert said == [f"out of memory: {rung}" for rung in rungs]


def test_references_never_outgrow_the_targets_of_an_early_stage() -> None:
    stages = (StageConfig(resolution=256), StageConfig(resolution=1024))
    memory = MemoryConfig(offload_activations=True, stream_base=True)
    config = RunConfig(name="x", family="kontext", stages=stages, memory=memory)
    rung = next_rung(config)
    assert rung is not None and rung[1] == "references shrink to 768 px"
    assert [rung[0].reference_side(stage.resolution) for stage in stages] == [256, 768]
    wide = dataclasses.replace(config, stages=stages[:1], reference_resolution=512)
    assert next_rung(wide) is None, "at 256 px already"

"""What a continued run goes on with, and what it refuses: shrunk sizes, other samples, another base."""

from __future__ import annotations

import dataclasses
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pack.training.checkpoint import checkpoint_steps
from pack.training.config import (
    AdapterConfig,
    MemoryConfig,
    OptimizerConfig,
    OutputConfig,
    RunConfig,
    StageConfig,
    ValidationConfig,
)
from pack.training.encode import read_manifest
from pack.training.files import whole_folder, write_tensors, write_text
from pack.training.ladder import laddered, remember_rung
from pack.training.memory import next_rung
from pack.training.metrics import MetricsFile, read_metrics
from pack.training.monitor import BestValue
from pack.training.presets import Overrides, dreamomni_run, lora_run, parse_stages
from pack.training.report import best_held_out, run_summary
from pack.training.samples import split_held_out
from pack.training.trainer import RunFolder, require_resumable
from safetensors.torch import load_file

from tests.training.toy import toy_config, toy_place, toy_samples, toy_trainer


def wide_stages(*resolutions: int, steps: int = 4) -> tuple[StageConfig, ...]:
    return tuple(
        StageConfig(resolution=side, batch_size=2, steps=steps, learning_rate=1e-2) for side in resolutions
    )


def test_a_run_goes_on_after_pictures_had_to_shrink(tmp_path: Path) -> None:
    config = toy_config(stages=wide_stages(512, steps=6))
    place = toy_place(tmp_path, resolutions=(512,))
    first, _ = toy_trainer(config, place, stop_at=3)
    assert first.run() == "cancelled"
    smaller = config
    for _ in range(5):  # recomputing, two moves to host memory, references, targets
        found = next_rung(smaller)
        assert found is not None
        smaller, gave_up = found
        remember_rung(place.folder, smaller, gave_up)
    assert (smaller.reference_resolution, smaller.stages[0].resolution) == (256, 384)
    toy_samples(place, resolutions=(384,))
    smaller = dataclasses.replace(smaller, memory=config.memory)  # the toy's blocks cannot be streamed
    remember_rung(place.folder, smaller, "targets shrink")
    second, _ = toy_trainer(smaller, place)
    assert second.run() == "finished"
    assert checkpoint_steps(place.checkpoints)[-1] == 6


def test_less_than_was_given_up_is_the_users_word(tmp_path: Path) -> None:
    wide = toy_config(stages=wide_stages(512))
    first = next_rung(wide)
    assert first is not None
    remember_rung(tmp_path, *first)
    asked = dataclasses.replace(wide, stages=wide_stages(256), reference_resolution=128)
    goes_on = laddered(asked, tmp_path)
    assert (goes_on.stages[0].resolution, goes_on.reference_resolution) == (256, 128)
    assert goes_on.memory == first[0].memory != wide.memory
    larger = laddered(dataclasses.replace(wide, stages=wide_stages(1024)), tmp_path)
    assert larger.stages[0].resolution == 512


def test_a_limit_that_references_do_not_reach_may_change() -> None:
    hobby, small = (
        lora_run(name="a", family="kontext", task="edit", base={}, preset=name, chosen=Overrides(), seed=0)
        for name in ("hobby", "8 GB")
    )
    assert "reference_resolution: 0 -> 512" in require_resumable(hobby, small)
    felt = dataclasses.replace(small, reference_resolution=256)
    with pytest.raises(ValueError, match="reference_resolution: 512 -> 256"):
        require_resumable(small, felt)


def test_a_stage_may_follow_after_memory_was_given_up(tmp_path: Path) -> None:
    one, two = (dreamomni_stages(text) for text in ("512 8 1e-4 100", "512 8 1e-4 100\n768 8 5e-5 100"))
    saved = one
    for _ in range(5):  # recomputing, host memory, references twice, targets
        found = next_rung(saved)
        assert found is not None
        saved, gave_up = found
        remember_rung(tmp_path, saved, gave_up)
    assert (saved.reference_resolution, saved.stages[0].resolution) == (256, 384)
    goes_on = laddered(two, tmp_path)
    require_resumable(laddered(saved, tmp_path), goes_on)
    assert goes_on.memory == saved.memory
    assert goes_on.reference_resolution == 256
    assert [stage.resolution for stage in goes_on.stages] == [384, 768]


def dreamomni_stages(text: str) -> RunConfig:
    return dreamomni_run(name="a", base={}, options={"preset": "small"}, stages=parse_stages(text), seed=0)


def test_a_base_that_was_moved_goes_on_by_its_content(tmp_path: Path) -> None:
    place = toy_place(tmp_path)
    here, there = (toy_config(base={"transformer": f"/{name}/flux.safetensors"}) for name in ("a", "b"))
    first, _ = toy_trainer(here, place, stop_at=2)
    first.base_hashes = {"transformer": "one"}
    assert first.run() == "cancelled"
    again, _ = toy_trainer(there, place)
    again.base_hashes = {"transformer": "one"}
    assert again.run() == "finished"
    unknown = toy_config(base={"transformer": "/a/flux.safetensors", "vlm": "/elsewhere"})
    with pytest.raises(ValueError, match=r"other settings: base\.vlm"):
        toy_trainer(unknown, place)[0].run()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_run_goes_on_with_the_weight_decay_that_is_asked_for(tmp_path: Path, name: str) -> None:
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    place = toy_place(tmp_path)
    first, _ = toy_trainer(toy_config(optimizer=OptimizerConfig(name=name, weight_decay=0.0)), place, 2)
    assert first.run() == "cancelled"
    config = toy_config(optimizer=OptimizerConfig(name=name, weight_decay=0.25))
    again, _ = toy_trainer(config, place, stop_at=3)
    assert again.run() == "cancelled"
    assert {group["weight_decay"] for group in again.session.optimizer.param_groups} == {0.25}
    assert again.session.optimizer.state_dict()["state"], "the moments are there"


def changed_samples(place: RunFolder) -> None:
    path = place.manifest(16)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    lines[3]["content"] = "another picture"
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("which", ["the dataset", "the base's transformer"])
def test_other_samples_or_another_base_are_refused(tmp_path: Path, which: str) -> None:
    place = toy_place(tmp_path)
    first, _ = toy_trainer(toy_config(), place, stop_at=2)
    first.base_hashes = {"transformer": "one"}
    assert first.run() == "cancelled"
    again, _ = toy_trainer(toy_config(), place)
    again.base_hashes = {"transformer": "two" if "base" in which else "one"}
    if which == "the dataset":
        changed_samples(place)
    with pytest.raises(
        ValueError, match=f"{which} changed since run 'toy' was started. Put back what it was"
    ):
        again.run()
    assert checkpoint_steps(place.checkpoints) == [2]


def test_a_cancelled_run_ends_where_it_is_when_asked_for_no_more_steps(tmp_path: Path) -> None:
    """What the help page promises those who like what they see before the end."""
    place = toy_place(tmp_path)
    whole = toy_config(steps=20, validation=ValidationConfig(every=7))
    stopped, _ = toy_trainer(whole, place, stop_at=5)
    assert stopped.run() == "cancelled"
    last = place.folder / "exports" / "last.safetensors"
    weights = load_file(last)
    shorter = toy_config(steps=5, validation=ValidationConfig(every=1))
    again, events = toy_trainer(shorter, place)
    assert again.run() == "finished"
    assert not [event for event in events if event["event"] == "step"]
    assert weights.keys() == load_file(last).keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in load_file(last).items())


def test_a_finished_run_still_knows_its_samples(tmp_path: Path) -> None:
    place = toy_place(tmp_path)
    for _ in range(2):
        trainer, _ = toy_trainer(toy_config(steps=3), place)
        assert trainer.run() == "finished"
    changed_samples(place)
    with pytest.raises(ValueError, match="the dataset changed"):
        toy_trainer(toy_config(steps=5), place)[0].run()


def test_the_best_weights_are_those_of_the_last_stage(tmp_path: Path) -> None:
    validation = ValidationConfig(fraction=0.25, every=2, smallest_split=2)
    config = toy_config(stages=wide_stages(16, 32), validation=validation)
    trainer, _ = toy_trainer(config, toy_place(tmp_path, resolutions=(16, 32)), stop_at=5)
    exported = tmp_path / "run" / "exports" / "best.safetensors"
    assert trainer.run() == "cancelled"
    assert (trainer.session.best_stage, trainer.session.best.step) == (1, 4)
    trainer.session.best.value = -1.0  # no later loss can be lower
    trainer.save()
    before = exported.read_bytes()
    again, _ = toy_trainer(config, trainer.place)
    assert again.run() == "finished"
    assert again.session.best.value == -1.0 and exported.read_bytes() == before, "the same stage: kept"

    later, _ = toy_trainer(toy_config(stages=wide_stages(16, 32, 64)), again.place)
    toy_samples(again.place, resolutions=(64,))
    assert later.run() == "finished"
    assert later.session.best_stage == 2 and later.session.best.value != -1.0
    assert exported.read_bytes() != before


def test_no_best_is_reported_between_a_stage_and_its_first_validation(tmp_path: Path) -> None:
    config = toy_config(
        stages=wide_stages(16, 32, steps=6),
        validation=ValidationConfig(fraction=0.25, every=5, smallest_split=2),
    )
    place = toy_place(tmp_path, resolutions=(16, 32))
    exported = place.folder / "exports" / "best.safetensors"
    for stop, words in (
        (6, " at step 5"),
        (8, ", the best is looked for anew from step 6"),
        (None, " at step 10"),
    ):
        trainer, events = toy_trainer(config, place, stop_at=stop)
        trainer.run()
        diary = MetricsFile(place.folder)
        for event in events:
            diary.append(event)
        diary.close()
        assert best_held_out(read_metrics(place.folder)).endswith(words)
        assert exported.is_file() == ("anew" not in words)


@pytest.mark.parametrize(
    ("changes", "is_kept"),
    [
        ({"stages": wide_stages(384, steps=6)}, False),
        ({"reference_resolution": 256}, False),
        ({"reference_resolution": 1024}, True),
        ({"memory": MemoryConfig(precision="fp32", offload_activations=True)}, True),
    ],
    ids=["targets", "references", "references that follow", "memory"],
)
def test_the_best_weights_of_larger_pictures_are_forgotten(
    tmp_path: Path, changes: dict[str, Any], is_kept: bool
) -> None:
    validation = ValidationConfig(fraction=0.25, every=2, smallest_split=2)
    config = toy_config(stages=wide_stages(512, steps=6), validation=validation)
    place = toy_place(tmp_path, resolutions=(512, 384))
    exported = place.folder / "exports" / "best.safetensors"
    first, _ = toy_trainer(config, place, stop_at=3)
    assert first.run() == "cancelled"
    assert first.session.best.step == 2 and exported.is_file()
    smaller = dataclasses.replace(config, **changes)
    remember_rung(place.folder, smaller, "something shrank")
    again, events = toy_trainer(laddered(smaller, place.folder), place, stop_at=3)
    assert again.run() == "cancelled"
    assert best_held_out(events) == ("" if is_kept else ", the best is looked for anew from step 3")
    assert again.session.best == (first.session.best if is_kept else BestValue())
    assert exported.is_file() == is_kept


def test_the_same_targets_are_held_out_at_every_resolution(tmp_path: Path) -> None:
    place = toy_place(tmp_path, count=20)
    entries = [dataclasses.replace(e, origin=f"picture {e.id}") for e in read_manifest(place.manifest(16))]
    larger = [dataclasses.replace(entry, target=f"larger {entry.id}") for entry in entries]
    config = ValidationConfig(fraction=0.25, smallest_split=2)
    assert split_held_out(entries, config) == split_held_out(larger, config)
    assert len(split_held_out(entries, config)[1]) == 5


def test_a_cancel_is_heard_inside_a_validation_and_between_batches(tmp_path: Path) -> None:
    validation = ValidationConfig(fraction=0.25, every=2, smallest_split=2)
    for name, calls in (("validation", 6), ("batches", 5)):
        trainer, _ = toy_trainer(toy_config(validation=validation), toy_place(tmp_path / name))
        left = [calls]

        def cancelled(left: list[int] = left) -> bool:
            left[0] -= 1
            return left[0] < 0

        trainer.cancelled = cancelled
        before = {key: part.detach().clone() for key, part in trainer.session.trainable.items()}
        assert trainer.run() == "cancelled"
        assert checkpoint_steps(trainer.place.checkpoints) == [trainer.session.step]
        if name == "batches":
            assert trainer.session.step == 1
        else:
            assert trainer.session.step == 2, "two steps and a part of the validation"
            assert any(not torch.equal(before[key], part) for key, part in trainer.session.trainable.items())


@contextmanager
def full_disk(free_bytes: int) -> Iterator[None]:
    """No file may grow beyond `free_bytes`: the operating system refuses, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_tensors_that_do_not_fit_on_the_disk_are_an_os_error_and_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    write_tensors(path, {"small": torch.zeros(4)})
    before = path.read_bytes()
    with full_disk(10_000), pytest.raises(OSError, match=r"weights\.safetensors could not be written: "):
        write_tensors(path, {"large": torch.zeros(100_000)})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    (tmp_path / "other").touch()
    write_text(tmp_path / "notes.json", "{}")
    modes = {(tmp_path / name).stat().st_mode for name in ("other", "notes.json")}
    assert len(modes) == 1, "others may read it as any file"


def test_a_folder_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "vlm"
    with whole_folder(folder) as partial:
        partial.mkdir()
        (partial / "config.json").write_text("{}")
    refused = pytest.raises(OSError, match="vlm could not be written: ")
    with full_disk(10_000), refused, whole_folder(folder) as partial:
        partial.mkdir()
        save_file({"large": torch.zeros(100_000)}, partial / "model.safetensors")
    assert [path.name for path in tmp_path.rglob("*")] == ["vlm", "config.json"]


def test_a_linked_folder_is_filled_where_it_leads(tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "vlm", tmp_path / "models" / "mine"
    real.mkdir(parents=True)
    (real / "old.json").touch()
    link.parent.mkdir()
    link.symlink_to(real)
    with whole_folder(link) as partial:
        partial.mkdir()
        (partial / "config.json").write_text("{}")
    assert link.is_symlink()
    assert [path.name for path in link.iterdir()] == ["config.json"]
    assert not list(tmp_path.rglob(".partial-*"))


def test_a_full_disk_is_reported_and_the_run_goes_on(tmp_path: Path) -> None:
    place = toy_place(tmp_path)
    config = toy_config(
        steps=6,
        adapter=AdapterConfig(rank=16, alpha=16),
        output=OutputConfig(checkpoint_every=2, sample_every=0),
    )
    trainer, events = toy_trainer(config, place)
    with full_disk(3_000):
        assert trainer.run() == "finished"
    failed = [event for event in events if event["event"] == "save_failed"]
    assert failed and "could not be written" in failed[0]["message"]
    assert not list(place.folder.rglob(".partial-*"))


def test_the_report_tells_the_memory_plan(tmp_path: Path) -> None:
    diary = MetricsFile(tmp_path)
    diary.append({"event": "plan", "step": 0, "text": "memory plan (estimate) for 7 tokens"})
    diary.close()
    assert "memory plan (estimate) for 7 tokens" in run_summary(tmp_path)


def test_only_kontext_has_references_for_less() -> None:
    common = {"name": "a", "task": "edit", "base": {}, "chosen": Overrides(), "seed": 0}
    run = lora_run(family="kontext", preset="references for less", **common)
    assert run.memory.reference_attention == "exact"
    for family in ("omnigen", "dreamomni"):
        with pytest.raises(ValueError, match=f"is for kontext.*{family} has none, choose another preset"):
            lora_run(family=family, preset="references for less", **common)


def test_a_base_in_nf4_is_not_streamed() -> None:
    def memory(precision: str | None) -> tuple[str, bool]:
        chosen = Overrides(precision=precision) if precision else Overrides()
        run = lora_run(name="a", family="kontext", task="edit", base={}, preset="8 GB", chosen=chosen, seed=0)
        return run.memory.precision, run.memory.stream_base

    assert memory(None) == ("fp8", True)
    assert memory("nf4") == ("nf4", False)
    assert memory("bf16") == ("bf16", True)

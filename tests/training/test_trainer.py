"""The run: resume, equality of splits, overfitting, validation, divergence, pictures, stages."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from pack.training.adapters import lora_off
from pack.training.cache import TensorCache
from pack.training.checkpoint import checkpoint_path, checkpoint_steps
from pack.training.config import (
    AdapterConfig,
    ObjectiveConfig,
    OptimizerConfig,
    OutputConfig,
    StageConfig,
    ValidationConfig,
)
from pack.training.encode import read_manifest
from pack.training.monitor import BestValue
from pack.training.samples import SampleStore
from pack.training.trainer import DivergedError
from pack.training.validation import held_out_loss
from safetensors import safe_open
from safetensors.torch import load_file

from tests.training.toy import SIZE, toy_config, toy_place, toy_trainer


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.session.trainable.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": OptimizerConfig(name="prodigy", ema_decay=0.9)},
        {"adapter": None, "optimizer": OptimizerConfig(schedule="cosine", warmup_steps=2, ema_decay=0.99)},
        {
            "adapter": AdapterConfig(rank=4, alpha=8, dropout=0.3),
            "objective": ObjectiveConfig(caption_dropout=0.2, condition_dropout=0.2),
        },
    ],
    ids=["adamw", "prodigy+ema", "full+cosine+ema", "dropout"],
)
def test_half_and_half_equals_the_whole_bit_for_bit(tmp_path: Path, changes: dict) -> None:
    pytest.importorskip("prodigyopt")
    config = toy_config(steps=8, **changes)
    whole, _ = toy_trainer(config, toy_place(tmp_path / "whole"))
    assert whole.session.config.adapter is None or whole.run() == "finished"
    if whole.session.config.adapter is None:
        whole.session.family.export_full = lambda *a: []
        assert whole.run() == "finished"
    place = toy_place(tmp_path / "halves")
    first, _ = toy_trainer(config, place, stop_at=4)
    first.session.family.export_full = lambda *a: []
    assert first.run() == "cancelled"
    torch.manual_seed(99)
    second, events = toy_trainer(config, place)
    second.session.family.export_full = lambda *a: []
    assert second.run() == "finished"
    assert events[0] == {"event": "started", "step": 4, "total": 8, "processes": 1}
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(second)[name]), name
    assert whole.session.monitor == second.session.monitor
    assert whole.session.best == second.session.best
    if whole.session.ema is not None:
        pairs = zip(whole.session.ema.shadow_params, second.session.ema.shadow_params, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_accumulation_of_four_equals_a_batch_of_four(tmp_path: Path) -> None:
    results = []
    for batch, accumulation in ((4, 1), (1, 4), (2, 2)):
        stage = StageConfig(
            resolution=16, batch_size=batch, gradient_accumulation=accumulation, steps=1, learning_rate=1e-2
        )
        place = toy_place(tmp_path / f"{batch}x{accumulation}", count=4)
        trainer, _ = toy_trainer(toy_config(stages=(stage,)), place)
        _, runner, _, _ = trainer.open_stage()
        # One epoch is one step, so every split sees the same four samples; sigma and noise belong to a slot.
        runner.order._epoch = lambda epoch: [2, 0, 3, 1]
        runner.gradients(0, 0)
        results.append({n: p.grad.clone() for n, p in trainer.session.trainable.items()})
        trainer.close()
    for other in results[1:]:
        for name, gradient in results[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-7)


def test_eight_pairs_are_learnt_to_a_tenth_of_the_first_loss(tmp_path: Path) -> None:
    stage = StageConfig(resolution=16, batch_size=8, steps=250, learning_rate=3e-3)
    config = toy_config(
        stages=(stage,),
        adapter=AdapterConfig(rank=64, alpha=64),
        validation=ValidationConfig(fraction=0.0),
        output=OutputConfig(checkpoint_every=1000, sample_every=0),
        optimizer=OptimizerConfig(schedule="cosine", weight_decay=0.0),
    )
    place = toy_place(tmp_path, count=8)
    trainer, _ = toy_trainer(config, place)
    before = trainer.session.network.blocks[0].first.base_layer.weight.clone()
    trainer.run()
    store = SampleStore(read_manifest(place.manifest(16)), TensorCache(place.cache))
    last = held_out_loss(trainer.session, store, range(8), trainer.team)
    with lora_off(trainer.session.network):
        first = held_out_loss(trainer.session, store, range(8), trainer.team)
    assert last < first / 10, (first, last)
    assert torch.equal(trainer.session.network.blocks[0].first.base_layer.weight, before)


def test_each_caption_meets_its_own_picture_in_every_epoch(tmp_path: Path) -> None:
    trainer, _ = toy_trainer(toy_config(steps=12), toy_place(tmp_path))
    store, runner, _, _ = trainer.open_stage()
    seen = []
    for step in range(12):
        for slot in runner.slots(step, step):
            sample = store.take(slot.index, slot.variant)
            entry = store.entries[slot.index]
            number = int(sample.id)
            assert sample.instruction == f"instruction {number}"
            for kind, tensor in (("target", sample.target), ("reference", sample.references[0])):
                assert torch.equal(tensor, store.cache.read(f"{kind}{number:03d}")["latent"])
            assert torch.equal(sample.prompt["code"], store.cache.read(entry.prompts["full"])["code"])
            seen.append(number)
    epoch = len(runner.indices)
    assert sorted(seen[:epoch]) == sorted(seen[epoch : 2 * epoch])
    assert seen[:epoch] != seen[epoch : 2 * epoch]
    trainer.close()


def test_held_out_samples_are_never_trained_on_and_their_loss_is_reproducible(tmp_path: Path) -> None:
    trainer, events = toy_trainer(toy_config(), toy_place(tmp_path))
    _, runner, held_out, _ = trainer.open_stage()
    assert len(held_out) == 3
    assert not set(held_out) & set(runner.indices)
    trainer.validate()
    trainer.validate()
    values = [event["loss"] for event in events if event["event"] == "validation"]
    assert values[0] == values[1]
    trainer.close()


def test_patience_stops_the_run_and_the_best_weights_are_kept(tmp_path: Path) -> None:
    config = toy_config(
        steps=200,
        validation=ValidationConfig(fraction=0.25, every=1, smallest_split=2, patience=3),
        stages=(StageConfig(resolution=16, batch_size=8, steps=200, learning_rate=0.05),),
    )
    place = toy_place(tmp_path)
    trainer, events = toy_trainer(config, place)
    assert trainer.run() == "stopped"
    validations = [event for event in events if event["event"] == "validation"]
    best = min(validations, key=lambda event: event["loss"])
    with safe_open(place.folder / "exports" / "best.safetensors", "pt") as file:
        assert file.metadata()["dreamomni.step"] == str(best["step"])
    assert trainer.session.best.step == best["step"] == trainer.session.step - 3


def test_what_is_no_number_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = BestValue()
    assert [best.add(loss, step) for step, loss in enumerate((math.nan, 2.0, math.nan, 3.0, 1.0))] == [
        False,
        True,
        False,
        False,
        True,
    ]
    config = toy_config(steps=2, validation=ValidationConfig(fraction=0.25, every=1, smallest_split=2))
    monkeypatch.setattr("pack.training.trainer.held_out_loss", lambda *args: math.nan)
    place = toy_place(tmp_path)
    assert toy_trainer(config, place)[0].run() == "finished"
    assert not (place.folder / "exports" / "best.safetensors").exists()


def test_a_runaway_loss_rewinds_to_the_last_checkpoint_and_says_what_to_do(tmp_path: Path) -> None:
    place = toy_place(tmp_path)
    trainer, events = toy_trainer(toy_config(steps=20), place)
    real = trainer.session.family.loss

    def poisoned(network, batch, noise, sigmas, config):
        factor = float("nan") if trainer.session.step >= 7 else 1.0
        return factor * real(network, batch, noise, sigmas, config)

    trainer.session.family.loss = poisoned
    with pytest.raises(
        DivergedError, match=r"diverged at step 10.*not finite.*back at step 6.*lower learning"
    ):
        trainer.run()
    assert [event["step"] for event in events if event["event"] == "skipped"] == [8, 9, 10]
    assert trainer.session.step == 6
    saved = load_file(checkpoint_path(place.checkpoints, 6) / "state.safetensors")
    for name, tensor in weights(trainer).items():
        assert torch.equal(tensor, saved[f"weight.{name}"])
        assert tensor.isfinite().all()


def test_a_cancel_while_the_loss_runs_away_replaces_no_good_checkpoint(tmp_path: Path) -> None:
    place = toy_place(tmp_path)
    trainer, events = toy_trainer(toy_config(steps=20), place, stop_at=8)
    real = trainer.session.family.loss

    def poisoned(*arguments):
        return real(*arguments) * (float("nan") if trainer.session.step >= 7 else 1.0)

    trainer.session.family.loss = poisoned
    assert trainer.run() == "cancelled"
    assert checkpoint_steps(place.checkpoints) == [3, 6]
    (note,) = [event["message"] for event in events if event["event"] == "note"]
    assert note.endswith("the run goes on from step 6")


def test_damaged_checkpoints_make_no_room_for_themselves_and_no_run_begins_again_unasked(
    tmp_path: Path,
) -> None:
    place = toy_place(tmp_path)
    toy_trainer(toy_config(steps=6), place)[0].run()
    (checkpoint_path(place.checkpoints, 6) / "state.json").write_text("{")
    again, events = toy_trainer(toy_config(steps=7), place)
    assert again.run() == "finished"
    assert next(event["step"] for event in events if event["event"] == "started") == 3
    names = sorted(path.name for path in place.checkpoints.iterdir())
    assert [name for name in names if name.startswith("damaged-")] == ["damaged-step-000000006"]
    for step in checkpoint_steps(place.checkpoints):
        (checkpoint_path(place.checkpoints, step) / "state.json").write_text("{")
    before = (place.folder / "exports" / "last.safetensors").read_bytes()
    with pytest.raises(ValueError, match="no checkpoint of run toy is whole"):
        toy_trainer(toy_config(steps=9), place)[0].run()
    assert (place.folder / "exports" / "last.safetensors").read_bytes() == before


def test_what_a_kill_left_among_the_exports_is_cleared_by_the_next_one(tmp_path: Path) -> None:
    place = toy_place(tmp_path)
    left = [place.folder / "exports" / name for name in (".partial-1", "last/.partial-2")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert toy_trainer(toy_config(steps=1), place)[0].run() == "finished"
    assert not any(path.exists() for path in left)


def test_a_loss_that_grows_fourfold_is_a_divergence() -> None:
    from pack.training.monitor import LossMonitor

    monitor = LossMonitor()
    for _ in range(100):
        monitor.add(1.0, 1.0)
    assert monitor.diverged() is None and not monitor.is_suspect
    while monitor.value < 2.5:
        monitor.add(10.0, 1.0)
    # Twice the lowest is not yet a divergence, but no checkpoint to keep either.
    assert monitor.diverged() is None and monitor.is_suspect
    for _ in range(200):
        monitor.add(10.0, 1.0)
    assert "4 x its lowest" in monitor.diverged()


@pytest.mark.parametrize(
    "shortage",
    [
        torch.OutOfMemoryError("no room"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["PyTorch's", "the driver's", "the library's"],
)
def test_out_of_memory_leaves_a_checkpoint_and_the_step_undone(
    tmp_path: Path, shortage: RuntimeError
) -> None:
    place = toy_place(tmp_path)
    trainer, _ = toy_trainer(toy_config(), place)
    real = trainer.session.family.loss

    def starving(*arguments):
        if trainer.session.step == 5:
            raise shortage
        return real(*arguments)

    trainer.session.family.loss = starving
    with pytest.raises(type(shortage)):
        trainer.run()
    assert checkpoint_steps(place.checkpoints)[-1] == 5
    assert all(parameter.grad is None for parameter in trainer.session.trainable.values())


def test_another_error_is_no_lack_of_memory(tmp_path: Path) -> None:
    place = toy_place(tmp_path)
    trainer, _ = toy_trainer(toy_config(), place)

    def broken(*arguments):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    trainer.session.family.loss = broken
    with pytest.raises(RuntimeError, match="illegal memory access"):
        trainer.run()
    assert checkpoint_steps(place.checkpoints) == []


def test_pictures_are_drawn_and_a_failing_one_does_not_end_the_run(tmp_path: Path) -> None:
    output = OutputConfig(checkpoint_every=100, sample_every=2, sample_count=2, sample_steps=2)
    place = toy_place(tmp_path)
    trainer, events = toy_trainer(toy_config(steps=4, output=output), place)
    real, calls = trainer.session.family.sample, []

    def failing_later(*arguments):
        calls.append(arguments[1].conditions["guidance"])
        if len(calls) > 4:
            raise RuntimeError("no picture today")
        return real(*arguments)

    trainer.session.family.sample = failing_later
    assert trainer.run() == "finished"
    assert set(calls) == {output.sample_guidance} != {trainer.session.config.objective.guidance}
    kinds = [event["event"] for event in events]
    assert kinds.count("samples") == 2
    assert kinds.count("sample_failed") == 1
    drawn = load_file(place.folder / "samples" / "step-000000002-1.safetensors")
    assert drawn["sample"].shape == (2, SIZE, SIZE)
    assert set(drawn) == {"sample", "target", "reference_1"}
    # saved before sampling, so that a crash while sampling loses nothing
    assert kinds.index("saved") < kinds.index("samples", kinds.index("step"))


def test_stages_follow_each_other_with_their_own_rate_and_batch(tmp_path: Path) -> None:
    stages = (
        StageConfig(resolution=16, batch_size=2, steps=2, learning_rate=1e-2),
        StageConfig(resolution=32, batch_size=4, steps=3, learning_rate=1e-3),
    )
    trainer, events = toy_trainer(toy_config(stages=stages), toy_place(tmp_path, resolutions=(16, 32)))
    trainer.run()
    assert [event["resolution"] for event in events if event["event"] == "stage"] == [16, 32]
    assert [event["learning_rate"] for event in events if event["event"] == "step"] == [1e-2] * 2 + [1e-3] * 3


def test_changed_settings_are_refused_with_a_way_out_and_harmless_ones_allowed(tmp_path: Path) -> None:
    place = toy_place(tmp_path)
    toy_trainer(toy_config(steps=4), place)[0].run()
    longer = toy_config(steps=6)
    assert toy_trainer(longer, place)[0].run() == "finished"
    other = dataclasses.replace(longer, adapter=AdapterConfig(rank=8))
    with pytest.raises(ValueError, match=r"adapter\.rank: 4 -> 8.*new run name"):
        toy_trainer(other, place)[0].run()


def test_the_saved_lora_names_its_base_task_and_recipe(tmp_path: Path) -> None:
    place = toy_place(tmp_path)
    trainer, _ = toy_trainer(toy_config(steps=3), place)
    trainer.base_hashes = {"transformer": "abc"}
    trainer.run()
    path = place.folder / "exports" / "last.safetensors"
    with safe_open(path, "pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
    assert metadata["dreamomni.task"] == "edit"
    assert json.loads(metadata["dreamomni.base_sha256"]) == {"transformer": "abc"}
    assert json.loads(metadata["dreamomni.recipe"])["adapter"]["rank"] == 4
    assert "transformer.blocks.0.first.lora_A.weight" in keys
    assert "transformer.blocks.0.first.alpha" in keys


def test_ema_weights_are_what_is_exported(tmp_path: Path) -> None:
    place = toy_place(tmp_path)
    trainer, _ = toy_trainer(toy_config(steps=5, optimizer=OptimizerConfig(ema_decay=0.5)), place)
    trainer.run()
    exported = load_file(place.folder / "exports" / "last.safetensors")
    for (name, raw), shadow in zip(
        trainer.session.trainable.items(), trainer.session.ema.shadow_params, strict=True
    ):
        assert torch.equal(exported[f"transformer.{name}"], shadow)
        if "lora_B" in name:
            assert not torch.equal(shadow, raw)


def test_samples_come_prefetched_or_not_alike(tmp_path: Path) -> None:
    trainer, _ = toy_trainer(toy_config(), toy_place(tmp_path))
    store: SampleStore = trainer.open_stage()[0]
    store.prefetch([(3, "full")])
    assert torch.equal(store.take(3, "full").target, store.read(3).target)
    assert store.read(3, "no_condition").references == ()
    trainer.close()

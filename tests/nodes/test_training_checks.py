"""Before the long work: what stops a run at once, what can be cancelled, and which weights come out."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.nodes.test_training_nodes import pairs

pytestmark = pytest.mark.host


def make_job(folder: Path, **changes: Any) -> Any:
    """A run on four pairs that is never trained."""
    from pack.nodes.training_run import Job
    from pack.training.config import RunConfig
    from pack.training.dataset import open_dataset

    config = RunConfig(name="checked", family="kontext", task="edit")
    parts = {"config": config, "dataset": open_dataset(folder), "encode_picture": None, "encode_prompt": None}
    return Job(**(parts | changes))


def without_instructions(folder: Path) -> Path:
    """Samples that the dataset check refuses after it has read them all."""
    file = pairs(folder) / "samples.jsonl"
    lines = [json.loads(line) | {"instruction": "  "} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_dataset_check_moves_the_bar(
    output_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.utils

    bars: list[tuple[int, int]] = []
    hook = lambda value, total, preview, node_id=None: bars.append((value, total))
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    # Newer ComfyUI sends only some of what comes quickly.
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0, raising=False)
    with pytest.raises(ValueError, match="the dataset cannot be trained on"):
        make_job(without_instructions(tmp_path / "data")).run()
    assert bars[-4:] == [(done, 4) for done in range(4)]


def test_hashing_the_base_moves_the_bar_and_can_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pack.nodes.training_bases import HASHED_BETWEEN, base_hashes
    from pack.training.config import RunConfig

    import comfy.model_management as mm
    import comfy.utils

    base = tmp_path / "base.safetensors"
    with base.open("wb") as file:
        file.truncate(2 * HASHED_BETWEEN + 1)
    config = RunConfig(name="hashed", family="kontext", task="edit", base={"transformer": str(base)})
    bars: list[tuple[int, int]] = []
    hook = lambda value, total, preview, node_id=None: bars.append((value, total))
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    # Newer hosts leave out what comes too soon after the last.
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0, raising=False)
    assert len(base_hashes(config)["transformer"]) == 64
    assert bars == [(1, 3), (2, 3)]
    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        base_hashes(config)


def test_cancel_is_noticed_while_the_records_are_read(output_dir: Path, tmp_path: Path) -> None:
    import comfy.model_management as mm

    job = make_job(pairs(tmp_path / "data"))
    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        job.check()
    mm.interrupt_current_processing(False)
    job.check()


def test_resuming_is_decided_without_reading_the_weights(output_dir: Path, tmp_path: Path) -> None:
    from pack.nodes.training_checks import check_resume
    from pack.training.checkpoint import RunState, checkpoint_path, save_checkpoint
    from pack.training.config import RunConfig
    from pack.training.config_json import to_json

    started = RunConfig(name="checked", family="kontext", task="edit", seed=1)
    state = RunState(step=3, tensors={"weight.a": torch.zeros(1)}, data={"config": to_json(started)})
    checkpoints = tmp_path / "run" / "checkpoints"
    save_checkpoint(checkpoints, state)
    (checkpoint_path(checkpoints, 3) / "state.safetensors").unlink()
    check_resume(started, tmp_path / "run")
    with pytest.raises(ValueError, match="was started with other settings"):
        check_resume(RunConfig(name="checked", family="kontext", task="edit", seed=2), tmp_path / "run")


@pytest.mark.parametrize(("processes", "refused"), [(1, False), (2, False), (3, True)])
def test_more_processes_than_cards_are_refused(
    output_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, refused: bool
) -> None:
    job = make_job(pairs(tmp_path / "data"), processes=processes)
    job.check()  # on a CPU any number may share
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if refused:
        with pytest.raises(ValueError, match=r"processes is 3 and this computer has 2 GPU\(s\).*to 2"):
            job.check()
    else:
        job.check()


@pytest.mark.parametrize(
    ("host", "worker", "message"),
    [
        ("xpu", "cpu", "ComfyUI runs on 'xpu', but training would run on the CPU.*CUDA.*MPS only"),
        ("cpu", "cuda", "ComfyUI runs on the CPU and the base has"),
        ("cuda", "cuda", ""),
        ("mps", "mps", ""),
    ],
)
def test_a_large_base_needs_a_device_that_training_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, worker: str, message: str
) -> None:
    from pack.nodes import training_checks
    from pack.training.config import RunConfig

    import comfy.model_management

    base = tmp_path / "large.safetensors"
    base.write_bytes(b"x" * 100)
    config = RunConfig(name="x", family="kontext", base={"transformer": str(base)})
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device(host))
    monkeypatch.setattr(training_checks, "chosen_device", lambda name, rank: torch.device(worker))
    training_checks.require_device(config)  # a small one may be trained anywhere
    monkeypatch.setattr(training_checks, "LARGEST_ON_CPU", 50)
    if message:
        with pytest.raises(ValueError, match=message):
            training_checks.require_device(config)
    else:
        training_checks.require_device(config)


def test_the_best_weights_are_published_else_the_last(models_dir: Path, output_dir: Path) -> None:
    from pack.nodes.training_folders import TrainingRun, runs_root
    from pack.nodes.training_results import best_export, publish_lora

    run = TrainingRun(runs_root() / "mine")
    exports = run.folder / "exports"
    exports.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="the run 'mine' has saved no weights yet"):
        publish_lora(run)
    published = models_dir / "loras" / "dreamomni" / "mine.safetensors"
    assert not published.exists()
    for name in ("last", "best"):
        (exports / f"{name}.safetensors").write_bytes(name.encode())
        assert models_dir / "loras" / publish_lora(run) == published
        assert published.read_bytes() == name.encode()
    assert [file.name for file in published.parent.iterdir()] == ["mine.safetensors"]

    networks = runs_root() / "network" / "exports"
    for name in ("last", "best"):
        (networks / name).mkdir(parents=True)
        assert best_export(networks.parent) == networks / name


def test_what_a_crash_leaves_is_no_adapter_to_choose(models_dir: Path, output_dir: Path) -> None:
    """A process that is killed between the copy and the rename leaves a file with no suffix of a model."""
    from pack.dit.whole_files import temporary_beside

    import folder_paths

    half = temporary_beside(models_dir / "loras" / "dreamomni" / "mine.safetensors")
    half.write_bytes(b"half of it")
    try:
        folder_paths.filename_list_cache.clear()
        assert not [name for name in folder_paths.get_filename_list("loras") if half.name in name]
    finally:
        half.unlink()


class Stopped(Exception):
    """Raised where a node would begin to work."""


@pytest.fixture
def begun(models_dir: Path, output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings of every run that a node began; it is stopped there."""
    from pack.nodes import training

    seen = []

    def remember(config: Any, *args: Any, **kept: Any) -> None:
        seen.append(config)
        raise Stopped

    monkeypatch.setattr(training, "make_job", remember)
    monkeypatch.setattr(training, "base_path", lambda base, family: Path("base.safetensors"))
    return seen


@pytest.mark.parametrize(
    ("choice", "weightings"),
    [
        (None, ("none", "mask")),
        ("even", ("none", "none")),
        ("mask", ("mask", "mask")),
        ("omnigen_paper", ("omnigen_paper", "omnigen_paper")),
        ("omnigen_code", ("omnigen_code", "omnigen_code")),
    ],
)
def test_the_changed_region_reaches_the_objective(
    begun: list[Any], choice: str | None, weightings: tuple[str, str]
) -> None:
    from pack.nodes import training

    given = {"changed_region": choice} if choice else {}
    vlm = SimpleNamespace(folder=SimpleNamespace(path="vlm"))
    with pytest.raises(Stopped):
        training.TrainLoRA.execute("base", "kontext", None, "a", "edit", "hobby", **given)
    with pytest.raises(Stopped):
        training.TrainDreamOmni.execute("tiny", None, "b", "", vlm=vlm, **given)
    assert tuple(config.objective.region_weighting for config in begun) == weightings
    assert {config.objective.mask_weight for config in begun} == {4.0}


@pytest.mark.parametrize(
    ("given", "optimizer", "rate", "kind"),
    [
        ({}, "adamw", 1e-4, "logit_normal"),
        ({"optimizer": "adamw", "timesteps": "as the family"}, "adamw", 1e-4, "logit_normal"),
        ({"optimizer": "adamw8bit", "timesteps": "logit_normal"}, "adamw8bit", 1e-4, "logit_normal"),
        ({"optimizer": "adamw8bit", "learning_rate": 3e-4}, "adamw8bit", 3e-4, "logit_normal"),
        ({"optimizer": "prodigy", "timesteps": "uniform"}, "prodigy", 1.0, "uniform"),
        ({"optimizer": "prodigy", "learning_rate": 0.0}, "prodigy", 1.0, "logit_normal"),
        ({"optimizer": "prodigy", "learning_rate": 0.5}, "prodigy", 0.5, "logit_normal"),
        ({"timesteps": "dynamic_shift"}, "adamw", 1e-4, "dynamic_shift"),
    ],
)
def test_optimizer_and_timesteps_reach_the_run(
    begun: list[Any], given: dict[str, Any], optimizer: str, rate: float, kind: str
) -> None:
    from pack.nodes import training

    with pytest.raises(Stopped):
        training.TrainLoRA.execute("base", "kontext", None, "a", "edit", "hobby", **given)
    (config,) = begun
    assert (config.optimizer.name, config.stages[0].learning_rate) == (optimizer, rate)
    assert config.timesteps.kind == kind


def test_what_the_node_offers_can_be_trained_with(begun: list[Any]) -> None:
    from pack.nodes import training
    from pack.training.optimizers import PACKAGES

    inputs = {given.id: given for given in training.TrainLoRA.define_schema().inputs}
    assert list(inputs)[-2:] == ["optimizer", "timesteps"]
    assert [inputs[name].default for name in ("optimizer", "timesteps")] == ["adamw", "as the family"]
    for name in ("optimizer", "timesteps"):
        for choice in inputs[name].options:
            with pytest.raises(Stopped):
                training.TrainLoRA.execute("base", "omnigen", None, "a", "edit", "hobby", **{name: choice})
    tooltip = inputs["optimizer"].tooltip
    assert all(word in tooltip for word in ("1.0", *PACKAGES.values()))


def test_a_missing_optimizer_package_stops_the_run_before_any_work(
    output_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pack.training import optimizers
    from pack.training.config import OptimizerConfig, RunConfig

    config = RunConfig(name="checked", family="kontext", optimizer=OptimizerConfig(name="prodigy"))
    real = optimizers.find_spec
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None if name == "prodigyopt" else real(name))
    with pytest.raises(ImportError, match=r"(?s)prodigy needs the package prodigyopt.*optimizer adamw"):
        make_job(pairs(tmp_path / "data"), config=config).run()


def test_a_damaged_base_is_refused_before_any_work(output_dir: Path, tmp_path: Path) -> None:
    from pack.training.config import RunConfig

    page = tmp_path / "page.safetensors"
    page.write_bytes(b"<!DOCTYPE html><title>Sign in</title>")
    config = RunConfig(name="checked", family="kontext", task="edit", base={"transformer": str(page)})
    with pytest.raises(ValueError, match=r"page\.safetensors is damaged or incomplete .*download it again"):
        make_job(pairs(tmp_path / "data"), config=config).check()


def test_a_cancel_is_noticed_while_the_worker_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    from pack.nodes.training_run import Listener

    import comfy.model_management

    listener = Listener(SimpleNamespace(config=SimpleNamespace(total_steps=10)))
    listener(None)
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        listener(None)


@pytest.mark.parametrize("preset", ["hobby", "8 GB", "references for less", "joint"])
def test_a_base_in_fp8_is_refused_on_mps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    from pack.nodes import training_checks
    from pack.training.config import AdapterConfig, RunConfig
    from pack.training.presets import PRESETS

    (base := tmp_path / "base.safetensors").write_bytes(b"x")

    def config(**changes: str) -> RunConfig:
        memory = replace(PRESETS[preset].memory, **changes)
        parts = {"transformer": str(base)}
        return RunConfig(name="x", family="kontext", base=parts, memory=memory, adapter=AdapterConfig())

    device = "mps"
    monkeypatch.setattr(training_checks, "chosen_device", lambda name, rank: torch.device(device))
    with pytest.raises(ValueError, match=r"MPS has no numbers for\. Set precision to int8.*or to bf16"):
        training_checks.require_device(config())
    training_checks.require_device(config(precision="int8"))
    device = "cuda"
    training_checks.require_device(config())

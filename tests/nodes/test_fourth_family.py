"""A family the nodes have never heard of: what they must know they ask of it, so none of them names it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from pack.dit.dreamomni.latent import LatentSpec
from pack.training import families
from pack.training.config import RunConfig
from pack.training.families.base import EncodePlan
from pack.training.presets import Overrides, lora_run

from tests.training.toy import ToyFamily

pytestmark = pytest.mark.host

NAME = "fourth"


class FourthFamily(ToyFamily):
    name = NAME
    base_role, base_folder = "network", "diffusers"
    trains_image_lora = reads_translations = has_exact_references = drops_condition = True

    def encode_plan(self, config: RunConfig) -> EncodePlan:
        return EncodePlan(image_encoding="vae", prompt_encoding="text")

    def latent_space(self, config: RunConfig) -> LatentSpec:
        return LatentSpec(kind="small", channels=5)


@pytest.fixture(autouse=True)
def fourth(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(f"{families.__name__}.{NAME}")
    module.FourthFamily = FourthFamily
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(families.FAMILIES, NAME, "FourthFamily")


@pytest.fixture
def base(models_dir: Path) -> Path:
    folder = models_dir / "diffusers" / "base"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def run_of(preset: str) -> RunConfig:
    return lora_run(
        name="x", family=NAME, task="edit", base={}, preset=preset, chosen=Overrides(steps=1), seed=0
    )


def test_train_lora_offers_it_with_its_bases(base: Path) -> None:
    from pack.nodes.training import TrainLoRA

    inputs = {item.id: item for item in TrainLoRA.define_schema().inputs}
    assert inputs["family"].options == ["kontext", "omnigen", "dreamomni", NAME]
    assert "diffusers/base" in inputs["base"].options


def test_its_bases_are_found_and_others_refused(base: Path) -> None:
    from pack.nodes.training import base_path, base_state

    assert base_path("diffusers/base", NAME) == base
    with pytest.raises(ValueError, match=r"no base for fourth; choose one that begins with diffusers/"):
        base_path("omnigen/v1", NAME)
    before = base_state("diffusers/base", NAME)
    assert before
    (base / "config.json").write_text("{ }")
    assert base_state("diffusers/base", NAME) != before
    assert base_state(None, NAME) == base_state("diffusers/base", None) == ""


def test_its_weights_stand_under_its_own_role(base: Path) -> None:
    from pack.nodes.training_bases import bare_model, base_parts

    weights = base / "model.safetensors"
    weights.touch()
    config = RunConfig(name="x", family=NAME, base={FourthFamily.base_role: str(base), "vlm": str(base)})
    assert base_parts(config) == {"network": (weights,)}
    assert bare_model(config) is None, "a LoRA for no MODEL is not held against one"


def test_presets_ask_what_it_can_do() -> None:
    run = run_of("references for less")
    assert run.memory.reference_attention == "exact"
    assert run.objective.condition_dropout == 0.1
    with pytest.raises(ValueError, match="'references for less' is for kontext and fourth, whose"):
        lora_run(
            name="x",
            family="omnigen",
            task="edit",
            base={},
            preset="references for less",
            chosen=Overrides(),
            seed=0,
        )


def test_its_latents_are_those_it_names() -> None:
    from pack.nodes.training_encoders import latent_format_of

    assert latent_format_of(run_of("hobby")).latent_channels == 5


def test_a_translator_may_write_its_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    from pack.nodes import training_job
    from pack.nodes.training_encoders import PixelPictures, RewrittenPrompts
    from pack.nodes.training_translator import joint_job

    monkeypatch.setattr(training_job, "picture_encoder", lambda *_: PixelPictures())
    job = training_job.make_job(
        run_of("joint"), dataset=None, vlm=SimpleNamespace(identity="vlm", picture_side=64)
    )
    assert job.rewrites
    assert isinstance(job.encode_prompt, RewrittenPrompts)
    with pytest.raises(ValueError, match="connect vlm: the joint preset teaches it"):
        joint_job(job, "joint", {"vlm": None}, 0)

"""What a preset decides, what the user puts in its place, and the stages of a text."""

from __future__ import annotations

from typing import Any

import pytest
from pack.training.config import RunConfig
from pack.training.config_json import config_hash, to_json
from pack.training.presets import (
    AS_FAMILY,
    LORA_OPTIMIZERS,
    PRESETS,
    Overrides,
    dreamomni_run,
    lora_run,
    parse_stages,
    vlm_run,
    with_optimizer,
    with_timesteps,
)

HOBBY = {
    "resolution": 512,
    "rank": 16,
    "learning_rate": 1e-4,
    "batch_size": 1,
    "gradient_accumulation": 2,
    "steps": 2000,
    "precision": "fp8",
    "stream_base": False,
    "offload_activations": False,
    "reference_resolution": 0,
    "reference_attention": "full",
    "translator": False,
}
# Written by hand after the table of the help page: what a user was promised, not what the code says.
PROMISED: dict[str, dict[str, Any]] = {
    "hobby": HOBBY,
    "8 GB": HOBBY | {"reference_resolution": 512, "stream_base": True, "offload_activations": True},
    "12 GB": HOBBY | {"precision": "nf4"},
    "16 GB": HOBBY | {"resolution": 768, "reference_resolution": 512, "precision": "nf4"},
    "24 GB": HOBBY | {"resolution": 1024, "precision": "int8"},
    "paper": HOBBY
    | {
        "gradient_accumulation": 16,
        "learning_rate": 5e-6,
        "rank": 256,
        "resolution": 1024,
        "steps": 10_000,
        "precision": "bf16",
    },
    "references for less": HOBBY | {"reference_attention": "exact"},
    "joint": HOBBY | {"translator": True},
}


def run_of(preset: str, chosen: Overrides | None = None, family: str = "kontext") -> RunConfig:
    """A run by a preset, of Kontext unless another family is named."""
    chosen = chosen or Overrides()
    return lora_run(name="x", family=family, task="edit", base={}, preset=preset, chosen=chosen, seed=1)


def test_every_preset_is_promised_something() -> None:
    assert list(PRESETS) == list(PROMISED)


@pytest.mark.parametrize("preset", list(PROMISED))
def test_a_preset_is_what_its_help_page_says(preset: str) -> None:
    config = run_of(preset)
    (stage,) = config.stages
    assert config.adapter is not None
    assert config.adapter.alpha == config.adapter.rank
    found = {
        "resolution": stage.resolution,
        "rank": config.adapter.rank,
        "learning_rate": stage.learning_rate,
        "batch_size": stage.batch_size,
        "gradient_accumulation": stage.gradient_accumulation,
        "steps": stage.steps,
        "precision": config.memory.precision,
        "stream_base": config.memory.stream_base,
        "offload_activations": config.memory.offload_activations,
        "reference_resolution": config.reference_resolution,
        "reference_attention": config.memory.reference_attention,
        "translator": PRESETS[preset].translator is not None,
    }
    assert found == PROMISED[preset]
    assert config.memory.gradient_checkpointing
    assert config.optimizer.name == "adamw"
    assert config.timesteps.kind == "logit_normal"


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_give_way_to_the_user(preset: str) -> None:
    chosen = Overrides(
        steps=10,
        learning_rate=3e-3,
        rank=3,
        batch_size=5,
        gradient_accumulation=7,
        resolution=320,
        precision="fp32",
    )
    config = run_of(preset, chosen)
    stage, adapter = config.stages[0], config.adapter
    assert (stage.steps, stage.learning_rate, stage.resolution) == (10, 3e-3, 320)
    assert (stage.batch_size, stage.gradient_accumulation) == (5, 7)
    assert (adapter.rank, adapter.alpha, config.memory.precision) == (3, 3, "fp32")


def test_the_paper_of_omnigen_is_its_own() -> None:
    config = run_of("paper", family="omnigen")
    (stage,), adapter, optimizer = config.stages, config.adapter, config.optimizer
    assert adapter is not None
    assert (adapter.rank, adapter.alpha) == (8, 8)
    assert (stage.learning_rate, stage.batch_size, stage.gradient_accumulation) == (3e-4, 2, 1)
    assert (stage.resolution, config.memory.precision) == (1024, "bf16")
    assert (optimizer.weight_decay, optimizer.schedule, optimizer.clip_norm) == (0.0, "constant", 1.0)
    assert config.objective.condition_dropout == 0.01
    assert run_of("hobby", family="omnigen").objective.condition_dropout == 0.1
    assert run_of("paper", Overrides(rank=16, learning_rate=1e-3), "omnigen").adapter.rank == 16


def test_a_family_without_published_numbers_has_no_paper() -> None:
    with pytest.raises(
        ValueError, match=r"the preset 'paper' is for kontext and omnigen.*for dreamomni there are none"
    ):
        run_of("paper", family="dreamomni")
    with pytest.raises(ValueError, match="'references for less' is for kontext"):
        run_of("references for less", family="omnigen")
    assert run_of("hobby", family="dreamomni").objective.condition_dropout == 0


def test_nf4_in_place_of_a_precision_is_not_streamed() -> None:
    assert not run_of("8 GB", Overrides(precision="nf4")).memory.stream_base
    assert run_of("8 GB", Overrides(precision="int8")).memory.stream_base


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_run_of_before_these_choices_goes_on_with_their_defaults(preset: str) -> None:
    before = run_of(preset)
    after = with_timesteps(with_optimizer(before, LORA_OPTIMIZERS[0], Overrides()), AS_FAMILY)
    assert config_hash(after) == config_hash(before)
    told = to_json(after)
    assert told["optimizer"] == {
        "name": "adamw",
        "schedule": "constant",
        "warmup_steps": 0,
        "weight_decay": 1e-4,
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "clip_norm": 1.0,
        "ema_decay": 0.0,
    }
    assert told["timesteps"] == {
        "kind": "logit_normal",
        "mean": 0.0,
        "std": 1.0,
        "shift": 1.0,
        "base_tokens": 256,
        "base_mu": 0.5,
        "max_tokens": 4096,
        "max_mu": 1.15,
    }


def test_prodigy_takes_no_rate_of_adamw() -> None:
    chosen = Overrides(learning_rate=3e-4)
    with pytest.raises(
        ValueError, match=r"learning_rate is 0\.0003 with .* prodigy.*at least 0\.01; set .* to 0"
    ):
        with_optimizer(run_of("hobby", chosen), "prodigy", chosen)


def test_a_translator_is_tuned_at_1e_5_in_full() -> None:
    config = vlm_run(name="x", folder="f", chosen=Overrides(), full=True, seed=0)
    assert config.stages[0].learning_rate == 1e-5


def test_stages_are_read_and_a_bad_line_is_named() -> None:
    stages = parse_stages("256 16 1e-4 2000  # small first\n\n512, 4, 5e-5, 1000\n")
    assert [(s.resolution, s.batch_size, s.learning_rate, s.steps) for s in stages] == [
        (256, 16, 1e-4, 2000),
        (512, 4, 5e-5, 1000),
    ]
    with pytest.raises(ValueError, match=r"line 2: '512 4' is not `resolution batch"):
        parse_stages("256 16 1e-4 10\n512 4")
    with pytest.raises(ValueError, match="stages is empty"):
        parse_stages("# nothing\n")
    run = dreamomni_run(name="x", base={}, options={}, stages=parse_stages("64 2 1e-3 5"), seed=0)
    assert run.adapter is None
    assert run.total_steps == 5

"""Settings: refused values, JSON round trip and what may change between a run and its continuation."""

from __future__ import annotations

import dataclasses

import pytest
from live_server import read_workflow
from pack.training.config import (
    AdapterConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    StageConfig,
    check_run_name,
)
from pack.training.config_json import changed_settings, config_hash, from_json, to_json
from pack.training.encode import used_variants
from pack.training.presets import dreamomni_run, parse_stages


def run(**changes: object) -> RunConfig:
    return RunConfig(name="a run", family="kontext", base={"transformer": "/x.safetensors"}, **changes)


@pytest.mark.parametrize("name", ["../out", "a/b", "a\\b", "", ".hidden", "trailing.", "x" * 81, "nul\0"])
def test_run_names_that_leave_their_folder_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a folder name"):
        check_run_name(name)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AdapterConfig(rank=0), "rank must be between 1 and 1024, got 0"),
        (lambda: OptimizerConfig(name="sgd"), "optimizer is 'sgd'; choose one of adamw"),
        (lambda: StageConfig(learning_rate=float("nan")), "learning_rate must be"),
        (lambda: ObjectiveConfig(caption_dropout=0.6, reference_dropout=0.6), "sum of the three dropout"),
        (lambda: StageConfig(batch_size=0), "batch_size must be at least 1"),
        (lambda: run(stages=()), "at least one stage"),
        (lambda: run(task="paint"), "task is 'paint'"),
    ],
)
def test_bad_values_say_what_is_allowed(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_json_round_trip_keeps_every_setting() -> None:
    config = run(
        stages=(StageConfig(resolution=256, steps=3), StageConfig(resolution=512)),
        adapter=None,
        options={"depth": 2, "tokens": True},
    )
    again = from_json(RunConfig, to_json(config))
    assert again == config
    assert config_hash(again) == config_hash(config)


def test_unknown_setting_is_named() -> None:
    with pytest.raises(ValueError, match="does not know colour"):
        from_json(RunConfig, {**to_json(run()), "colour": 1})


def test_changes_are_split_into_harmless_and_refused() -> None:
    old = run()
    new = dataclasses.replace(
        old,
        stages=(dataclasses.replace(old.stages[0], steps=2000),),
        adapter=AdapterConfig(rank=32),
        output=dataclasses.replace(old.output, sample_every=10),
    )
    harmless, refused = changed_settings(old, new)
    assert harmless == ["output.sample_every: 250 -> 10", "stages.0.steps: 1000 -> 2000"]
    assert refused == ["adapter.rank: 16 -> 32"]


def test_stage_of_a_step() -> None:
    config = run(stages=(StageConfig(steps=2), StageConfig(steps=3, resolution=1024)))
    assert [config.stage_at(step)[0] for step in range(6)] == [0, 0, 1, 1, 1, 1]
    assert config.total_steps == 5


@pytest.mark.parametrize("name", ["drag", "inpaint", "instruction-edit", "reference", "text-to-image"])
def test_a_network_is_trained_on_the_negative_of_the_workflows(name: str) -> None:
    nodes = read_workflow(f"dreamomni-{name}")["nodes"]
    (negative,) = [node for node in nodes if node.get("title") == "Without instruction"]
    assert negative["widgets_values"][0] == ""
    sees = any(socket["name"] == "references" and socket["link"] for socket in negative["inputs"])
    trained = dreamomni_run(name="x", base={}, options={}, stages=parse_stages("32 2 1e-3 1"), seed=0)
    assert ("no_caption" if sees else "no_condition") in used_variants(trained)

"""What tooltips and help pages tell of settings, held against the settings themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pack.training.config import RunConfig, StageConfig
from pack.training.families.dreamomni_setup import STAGE_PLANS
from pack.training.presets import Overrides, vae_run, vlm_run

pytestmark = pytest.mark.host
PAGES = Path(__file__).parents[2] / "web" / "docs"


def page_of(node: str) -> str:
    return (PAGES / f"{node}.md").read_text("utf-8")


def usual_run(node: str, full: bool = False) -> RunConfig:
    """The run of a node without presets whose widgets were left alone."""
    if node == "TrainVAE":
        return vae_run(name="x", start="", options={}, chosen=Overrides(), seed=0)
    return vlm_run(name="x", folder="f", chosen=Overrides(), full=full, seed=0)


@pytest.mark.parametrize("node", ["TrainVLM", "TrainVAE"])
def test_a_node_without_presets_tells_what_a_zero_stands_for(output_dir: Path, node: str) -> None:
    from pack.nodes import NODES

    (kind,) = (kind for kind in NODES if kind.GET_SCHEMA().node_id == f"DreamOmni{node}")
    tooltips = {entry.id: entry.tooltip for entry in kind.GET_SCHEMA().inputs}
    assert not [name for name, words in tooltips.items() if "as the preset says" in words]
    config = usual_run(node)
    values = {name: getattr(config.stages[0], name) for name in StageConfig.__slots__}
    if config.adapter is not None:
        values["rank"] = config.adapter.rank
    zeros = {name: re.search(r" 0: ([^,]+?)[,.](?: |$)", words + " ") for name, words in tooltips.items()}
    found = {name: float(zero[1]) for name, zero in zeros.items() if zero}
    assert found and found == {name: values[name] for name in found}
    if node == "TrainVLM":
        rate = usual_run(node, full=True).stages[0].learning_rate
        assert tooltips["learning_rate"].endswith(f"with full {rate:.0e}.".replace("e-0", "e-"))
        assert f"'as the preset' is {config.memory.precision}." in tooltips["precision"]


def test_a_joint_run_teaches_as_many_steps_as_its_tooltip_says(output_dir: Path) -> None:
    from pack.nodes.training import TrainLoRA

    (tip,) = (i.tooltip for i in TrainLoRA.GET_SCHEMA().inputs if i.id == "translator_steps")
    assert tip.endswith(f" 0: {usual_run('TrainVLM').total_steps}.")


@pytest.mark.parametrize("config", list(STAGE_PLANS))
def test_the_help_page_lists_the_stages_of_every_config(config: str) -> None:
    (row,) = (
        line for line in page_of("DreamOmniTrainDreamOmni").splitlines() if line.startswith(f"| `{config}` |")
    )
    stages = STAGE_PLANS[config]()
    told = [tuple(map(float, numbers.split())) for numbers in re.findall(r"`(\d+ \d+ [\d.e-]+ \d+)`", row)]
    assert told == [(s.resolution, s.global_batch, s.learning_rate, s.steps) for s in stages]
    assert row.endswith(f"| {sum(stage.steps for stage in stages):,} |")


def fixed_choices(kind: Any) -> dict[str, list[str]]:
    """Combo -> what it offers, with no models or runs on the disk."""
    return {
        entry.id: [str(option) for option in entry.options]
        for entry in kind.GET_SCHEMA().inputs
        if getattr(entry, "options", None)
    }


def told_about(node: str) -> str:
    """A node's page, and the one it sends its readers to."""
    page = page_of(node)
    return (page + page_of("DreamOmniTrainLoRA") if "As in *Train LoRA*" in page else page).lower()


def test_help_pages_name_every_choice(models_dir: Path, output_dir: Path) -> None:
    from pack.nodes import NODES

    missing = [
        f"{kind.GET_SCHEMA().node_id}.{name}: {choice}"
        for kind in NODES
        for name, choices in fixed_choices(kind).items()
        for choice in choices
        if choice.lower() not in told_about(kind.GET_SCHEMA().node_id)
    ]
    assert "\n".join(missing) == ""

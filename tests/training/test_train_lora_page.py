"""Numbers of Train LoRA's help page, computed from the settings they are about."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import FluxTransformer2DModel
from pack.training.config import AdapterConfig, RunConfig, ValidationConfig
from pack.training.families.kontext import KontextFamily
from pack.training.memory import Footprint, planned_bytes, session_footprint
from pack.training.presets import PRESETS, Overrides, lora_run
from pack.training.samples import split_held_out
from pack.training.session import make_trainable

PAGES = Path(__file__).parents[2] / "web" / "docs"
PAGE = (PAGES / "DreamOmniTrainLoRA.md").read_text("utf-8")
WORDS = 512
"""Tokens to which the training workflows fill up a short prompt of FLUX."""
PATCH = 16
"""Pixels a side that one token of FLUX stands for."""


def run_of(preset: str) -> RunConfig:
    return lora_run(
        name="x", family="kontext", task="edit", base={}, preset=preset, chosen=Overrides(), seed=0
    )


@lru_cache
def kontext_footprint(adapter: AdapterConfig) -> Footprint:
    """FLUX.1 Kontext with a LoRA, as the plan of a run measures it; no weight is made."""
    with torch.device("meta"):
        network = FluxTransformer2DModel(guidance_embeds=True)
        config = RunConfig(name="x", family="kontext", adapter=adapter)
        trainable = make_trainable(network, config, KontextFamily(), torch.device("meta"))
    return session_footprint(
        SimpleNamespace(network=network, trainable=trainable, family=KontextFamily(), config=config)
    )


def planned_gigabytes(preset: str) -> tuple[float, float]:
    """(on the card, in host memory) for an edit with one reference, in 10^9 bytes."""
    config = run_of(preset)
    side = config.stages[0].resolution
    pictures = [side, side, config.reference_side(side)]
    tokens = WORDS + sum((picture // PATCH) ** 2 for picture in pictures)
    assert config.adapter is not None
    parts = planned_bytes(config, kontext_footprint(config.adapter), tokens)
    host = sum(size for name, size in parts.items() if "host memory" in name)
    return (sum(parts.values()) - host) / 1e9, host / 1e9


@pytest.mark.parametrize("preset", list(PRESETS))
def test_the_table_of_presets_tells_the_plan_of_the_pack(preset: str) -> None:
    card, host = planned_gigabytes(preset)
    told = f"{card:.1f} GB" + (f", and {host:.1f} GB of RAM" if host else "")
    (row,) = (row for row in PAGE.splitlines() if row.startswith(f"| `{preset}` |"))
    assert row.endswith(f"| {told} |"), told


def test_the_first_number_of_samples_that_has_a_held_out_loss() -> None:
    def held_out(count: int) -> int:
        entries = [SimpleNamespace(origin=str(number), target="") for number in range(count)]
        return len(split_held_out(entries, ValidationConfig())[1])

    first = next(count for count in range(1, 1000) if held_out(count))
    assert f"From {first} samples on" in PAGE
    assert f"{held_out(first)} of {first}" in PAGE
    report = (PAGES / "DreamOmniTrainingReport.md").read_text("utf-8")
    assert f"fewer than {first} samples has none" in report
    largest = ValidationConfig().largest_split
    assert held_out(10_000) == largest and f"at most {largest}" in PAGE

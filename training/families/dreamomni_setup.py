"""Which DreamOmni network a run trains: from a model folder, or new from a preset, a VLM and a VAE."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from ...dit.dreamomni.config import PRESETS, DreamOmniConfig
from ...dit.dreamomni.latent import LatentSpec, pixel_latent
from ...dit.dreamomni.storage import CONFIG, read_index, read_json
from ...vlm.families import hidden_size
from ..config import RunConfig, StageConfig, one_of

NETWORK_OPTION = "network."
LATENT = "latent.json"
"""Beside a small VAE: the latent space as its network sees it, measured when the VAE was trained."""


def network_config(config: RunConfig) -> DreamOmniConfig:
    """The network of a run.

    `base["model"]` is a folder to go on from; otherwise `options["preset"]` names a preset, `base["vlm"]` and
    `base["vae"]` fix what they feed it, and `options["network.<field>"]` changes single fields (ablations;
    `rope_axes` as `8,12,12`).
    Raises ValueError for unknown names and fields.
    """
    if "model" in config.base:
        network = read_index(Path(config.base["model"])).network
    else:
        network = fresh_config(config)
    if "positions" in config.options:
        network = replace(network, reference_positions=str(config.options["positions"]))
    return network


def fresh_config(config: RunConfig) -> DreamOmniConfig:
    """A preset fitted to the run's VLM and VAE, with the run's changes."""
    name = str(config.options.get("preset", "tiny"))
    one_of("DreamOmni preset", name, tuple(PRESETS))
    changes: dict[str, Any] = {}
    if "vlm" in config.base:
        place = Path(config.base["vlm"]) / CONFIG
        changes["vlm_width"] = hidden_size(read_json(place), str(place))
    if "pixel_block" in config.options:
        changes["latent"] = pixel_latent(int(config.options["pixel_block"]))
    elif (Path(config.base.get("vae", "")) / LATENT).is_file():
        changes["latent"] = read_latent(Path(config.base["vae"]))
    known = {item.name for item in fields(DreamOmniConfig)} - {"latent"}
    for key, value in config.options.items():
        if key.startswith(NETWORK_OPTION):
            field = key.removeprefix(NETWORK_OPTION)
            one_of("DreamOmni network field", field, tuple(sorted(known)))
            changes[field] = axes_from(str(value)) if field == "rope_axes" else value
    return replace(PRESETS[name](), **changes)


def axes_from(text: str) -> tuple[int, ...]:
    """`8,12,12` as numbers: options hold no lists."""
    return tuple(int(part) for part in text.split(","))


def read_latent(folder: Path) -> LatentSpec:
    """The latent space of a trained small VAE."""
    place = folder / LATENT
    return LatentSpec.from_mapping(read_json(place), str(place))


def write_latent(path: Path, spec: LatentSpec) -> None:
    """Store a latent space as `read_latent` reads it."""
    path.write_text(json.dumps(asdict(spec), indent=2), "utf-8")


def paper_stages() -> tuple[StageConfig, ...]:
    """256, 512, 1024 px, for a cluster; resolutions as published, batches, rates and steps chosen."""
    rows = ((256, 2048, 1e-4, 377_000), (512, 1024, 5e-5, 189_000), (1024, 256, 2e-5, 140_000))
    return tuple(
        StageConfig(
            resolution=side,
            batch_size=8,
            gradient_accumulation=batch // 8,
            learning_rate=rate,
            steps=steps,
        )
        for side, batch, rate, steps in rows
    )


def home_stages() -> tuple[StageConfig, ...]:
    """256 and 512 px on one card; chosen."""
    return (
        StageConfig(resolution=256, batch_size=16, learning_rate=2e-4, steps=60_000),
        StageConfig(resolution=512, batch_size=8, learning_rate=1e-4, steps=20_000),
    )


def tiny_stages() -> tuple[StageConfig, ...]:
    """32, then 64 px; chosen for a CPU or a minute on a card."""
    return (
        StageConfig(resolution=32, batch_size=32, learning_rate=1e-3, steps=2_000),
        StageConfig(resolution=64, batch_size=32, learning_rate=5e-4, steps=4_000),
    )


STAGE_PLANS: dict[str, Callable[[], tuple[StageConfig, ...]]] = {
    "paper-2.5b": paper_stages,
    "small": home_stages,
    "tiny": tiny_stages,
}

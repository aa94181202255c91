"""The files a run gives away: a LoRA (or whole network) with everything known about it in its metadata."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..dit.whole_files import clear_partial_files
from .adapters import saved_lora
from .config import RunConfig
from .config_json import config_hash, to_json
from .files import write_json, write_tensors
from .session import Session

FORMAT = "dreamomni.lora.1"
BEST = "best"
"""Name of the weights with the lowest held-out loss; `best.json` beside them tells their step."""


def recipe_metadata(session: Session, step: int, base_hashes: Mapping[str, str]) -> dict[str, str]:
    """safetensors metadata: base hash, task, position scheme, recipe, and what other programs look for."""
    config = session.config
    adapter = config.adapter
    facts = {
        "format": "pt",
        "dreamomni.format": FORMAT,
        "dreamomni.family": config.family,
        "dreamomni.task": config.task,
        "dreamomni.step": str(step),
        "dreamomni.base_sha256": json.dumps(dict(base_hashes), sort_keys=True),
        "dreamomni.recipe": json.dumps(public_recipe(config), sort_keys=True),
        "dreamomni.recipe_sha256": config_hash(config),
        "dreamomni.reference_attention": config.memory.reference_attention,
        "modelspec.title": config.name,
    }
    if adapter is not None:
        facts |= {"ss_network_dim": str(adapter.rank), "ss_network_alpha": str(adapter.alpha)}
    return facts | session.family.metadata(config)


def public_recipe(config: RunConfig) -> dict[str, object]:
    """The settings without the folders of the machine: files keep their names only."""
    recipe = to_json(config)
    recipe["base"] = {role: Path(path).name for role, path in config.base.items()}
    return recipe


def export(session: Session, folder: Path, name: str, base_hashes: Mapping[str, str]) -> list[Path]:
    """Write the weights as they are now to `folder`; the files written."""
    for place in (folder, folder / name):
        clear_partial_files(place)  # else what a killed run left would be given away with the model
    with session.saved_weights() as weights:
        metadata = recipe_metadata(session, session.step, base_hashes)
        if session.config.adapter is None:
            return session.family.export_full(
                session.network, weights, folder / name, metadata, session.config
            )
        tensors = exported_lora(session, weights)
        path = folder / f"{name}.safetensors"
        write_tensors(path, tensors, metadata)
        return [path]


def remove_export(folder: Path, name: str) -> None:
    """Remove what `export` wrote under a name, if anything."""
    for ending in (".safetensors", ".json"):
        (folder / f"{name}{ending}").unlink(missing_ok=True)
    shutil.rmtree(folder / name, ignore_errors=True)


def announce_best(folder: Path, step: int) -> None:
    """Tell the step of the best weights that are about to be exported, so that none are taken for others."""
    write_json(folder / f"{BEST}.json", {"step": step})


def exported_best(folder: Path, told: int) -> int | None:
    """Step of the best weights in `folder`, `told` if an earlier version left them; None without any."""
    if not any((folder / name).exists() for name in (f"{BEST}.safetensors", BEST)):
        return None
    note = folder / f"{BEST}.json"
    return json.loads(note.read_text(encoding="utf-8"))["step"] if note.is_file() else told


def exported_lora(session: Session, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The LoRA under the keys of its file."""
    assert session.config.adapter is not None
    return saved_lora(weights, session.family.lora_prefix, session.config.adapter)

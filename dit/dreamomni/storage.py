"""A DreamOmni model folder: dit.safetensors, config.json, vlm/ and vae/. Written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..safetensors_files import open_weights, write_errors
from ..tensor_names import tensor_faults
from ..whole_files import whole_file, write_text
from .config import DreamOmniConfig
from .network import DreamOmniNetwork
from .vae import SmallVAE, SmallVAEConfig

FORMAT = "dreamomni-1"
WEIGHTS, CONFIG = "dit.safetensors", "config.json"
VAE_WEIGHTS = "vae.safetensors"
PREFIXES = ("model.diffusion_model.", "diffusion_model.")
MODEL_PARTS = f"A DreamOmni folder holds {CONFIG}, {WEIGHTS}, vlm/ and vae/; train one with 'Train DreamOmni'"
VAE_PARTS = f"A small VAE's folder holds {CONFIG} and {VAE_WEIGHTS}; train one with 'Train Small VAE'"


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderIndex:
    """What config.json says: the network, and where VLM and VAE are.

    `vlm` and `vae` name a part of this folder or, if there is none of that name, a model in models/vlm and a
    file in models/vae, so that large parts need not be stored twice.
    """

    network: DreamOmniConfig
    vlm: str = "vlm"
    vae: str = "vae"

    def __post_init__(self) -> None:
        for key, name in (("vlm", self.vlm), ("vae", self.vae)):
            path = PurePosixPath(name.replace("\\", "/"))
            if not name or path.is_absolute() or ":" in name or not set(path.parts).isdisjoint({"..", "."}):
                raise ValueError(
                    f"config.json names {name!r} as {key!r}; a plain name below the folder is needed"
                )


def write_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file at `path`, atomically; OSError when the disk is full."""
    with whole_file(path) as partial, write_errors(path.name):
        save_file(
            {name: part.detach().cpu().contiguous() for name, part in weights.items()},
            partial,
            dict(metadata),
        )


def save_dreamomni(
    folder: Path,
    index: FolderIndex,
    weights: Mapping[str, Tensor],
    *,
    vae: SmallVAE | None = None,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write a model folder; the files written. `metadata` (the recipe) goes into dit.safetensors.

    config.json is written last, so that a folder with one is complete. Raises ValueError unless the weights
    are those of the network, OSError when the disk is full (what was there before then still is).
    """
    check_weights({name: tuple(part.shape) for name, part in weights.items()}, index.network, "the weights")
    folder.mkdir(parents=True, exist_ok=True)
    facts = {**(metadata or {}), "format": "pt", "dreamomni.config": index.network.to_json()}
    written = [folder / WEIGHTS]
    write_weights(written[0], weights, facts)
    if vae is not None:
        written += save_vae(folder / index.vae, vae)
    written.append(folder / CONFIG)
    text = {
        "format": FORMAT,
        "network": json.loads(index.network.to_json()),
        "vlm": index.vlm,
        "vae": index.vae,
    }
    write_text(written[-1], json.dumps(text, indent=2))
    return written


def save_vae(folder: Path, vae: SmallVAE) -> list[Path]:
    """Write a small VAE's folder; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder / VAE_WEIGHTS, vae.state_dict(), {"format": "pt"})
    write_text(folder / CONFIG, json.dumps(asdict(vae.config), indent=2))
    return [folder / VAE_WEIGHTS, folder / CONFIG]


def read_json(path: Path, parts: str = MODEL_PARTS) -> dict[str, Any]:
    """The object in a JSON file; FileNotFoundError (saying what its folder holds) or ValueError naming it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. {parts} or copy all of its files.")
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as err:
        raise ValueError(f"{path} is not readable JSON ({err}); copy it again") from err
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, a JSON object is needed")
    return values


def read_index(folder: Path) -> FolderIndex:
    """config.json of a model folder."""
    values = read_json(folder / CONFIG)
    if values.get("format") != FORMAT:
        raise ValueError(
            f"{folder / CONFIG} has the format {values.get('format')!r}, a DreamOmni folder of this pack has "
            f"{FORMAT!r}. Folders of other models belong in models/omnigen or models/vlm."
        )
    network = DreamOmniConfig.from_mapping(values.get("network", {}))
    return FolderIndex(network=network, vlm=values.get("vlm", "vlm"), vae=values.get("vae", "vae"))


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file without ComfyUI's prefix; raises if it is missing or cut."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the whole model folder")
    with open_weights(path) as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    for prefix in PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            return {name.removeprefix(prefix): part for name, part in weights.items()}
    return weights


def check_weights(shapes: Mapping[str, tuple[int, ...]], config: DreamOmniConfig, place: str) -> None:
    """Raise ValueError, listing names, unless the tensors are exactly those of the network."""
    module = DreamOmniNetwork(config, device="meta")
    faults = tensor_faults(shapes, {name: tuple(part.shape) for name, part in module.state_dict().items()})
    if faults:
        raise ValueError(
            f"{place} does not hold the network its config describes ({faults}). "
            "Do config.json and the weights belong together, and is the file complete?"
        )


def load_network(
    folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> DreamOmniNetwork:
    """The network of a model folder as a plain trainable module."""
    index = read_index(folder)
    weights = read_weights(folder / WEIGHTS)
    check_weights(
        {name: tuple(part.shape) for name, part in weights.items()}, index.network, str(folder / WEIGHTS)
    )
    network = DreamOmniNetwork(index.network, dtype=dtype, device=device)
    network.load_state_dict(weights)
    return network


def load_vae(folder: Path, dtype: torch.dtype = torch.float32) -> SmallVAE:
    """The small VAE in `folder` (config.json and vae.safetensors)."""
    vae = SmallVAE(SmallVAEConfig.from_mapping(read_json(folder / CONFIG, VAE_PARTS)), dtype=dtype)
    weights = read_weights(folder / VAE_WEIGHTS)
    faults = vae.load_state_dict(weights, strict=False) if _shapes_fit(vae, weights) else None
    if faults is None or faults.missing_keys or faults.unexpected_keys:
        raise ValueError(f"{folder / VAE_WEIGHTS} does not hold the VAE that {folder / CONFIG} describes")
    return vae


def _shapes_fit(module: torch.nn.Module, weights: Mapping[str, Tensor]) -> bool:
    own = module.state_dict()
    return all(name not in own or own[name].shape == part.shape for name, part in weights.items())

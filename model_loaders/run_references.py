"""The references a run will hand to the network, and how much each of them leaves in it.

Shapes: B batch, C channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..dit.positions import PositionScheme, latent_grid, reference_placements
from ..dit.reference_cache import Offset


@dataclass(frozen=True, slots=True)
class Wanted:
    """One reference of a run: a latent (1, C, h, w) as the network gets it, and where it will probably be."""

    latent: Tensor
    offset: Offset


def wanted_references(model: Any, conds: dict[str, Any]) -> list[Wanted]:
    """Every reference of every conditioning, as ComfyUI will hand it to the network."""
    return [item for group in conds.values() for cond in group for item in cond_references(model, cond)]


def cond_references(model: Any, cond: dict[str, Any]) -> Iterator[Wanted]:
    """The references of one conditioning, batch items apart, at the places of DreamOmni2's encoding."""
    latents = [latent for latent in cond.get("reference_latents") or [] if latent.ndim == 4]
    patch = model.get_model_object("diffusion_model").patch_size
    grids = [latent_grid(*latent.shape[-2:], patch) for latent in latents]
    places = reference_placements(grids, PositionScheme.INDEX_OFFSET)
    dtype = inference_dtype(model)
    for latent, place in zip(latents, places, strict=True):
        for item in model.model.process_latent_in(latent).to(dtype):
            yield Wanted(item[None], (float(place.index), 0.0, float(place.column)))


def inference_dtype(model: Any) -> torch.dtype:
    """The number type a ModelPatcher's network computes in."""
    # From the ModelPatcher: another node's number type is in the network only while the model is loaded.
    return model.get_model_object("manual_cast_dtype") or model.model.get_dtype()


def num_values(network: Any, latent: Tensor) -> int:
    """Numbers in the keys and values of all layers for a latent (..., h, w)."""
    layers = len(network.double_blocks) + len(network.single_blocks)
    tokens = latent_grid(*latent.shape[-2:], network.patch_size).num_tokens
    return 2 * tokens * layers * network.hidden_size


def same_latents(known: Sequence[Tensor], latents: Sequence[Tensor]) -> bool:
    """Whether two lists of latents are equal in number, type and every value."""
    return len(known) == len(latents) and all(
        one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
        for one, other in zip(known, latents, strict=True)
    )

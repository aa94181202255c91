"""The position encoding of references on any Flux MODEL: a wrapper around the network's call, on a clone.

ComfyUI's own `index` method gives reference n the index n; the wrapper asks for it and then moves the ids to
the chosen scheme. It keeps no state between calls, so it stacks with LoRAs and other patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import comfy.ldm.flux.model
from comfy.patcher_extension import WrappersMP

from ..dit.positions import Grid, PositionScheme, latent_grid, reference_placements
from .dreamomni_model import POSITIONS, DreamOmniModel
from .reference_checks import check_references

KEY = "dreamomni_position_encoding"
FLUX_VAE = "For Kontext use Flux's VAE (ae.safetensors)."


def attach_position_encoding(model: Any, scheme: PositionScheme) -> Any:
    """A clone of the ModelPatcher whose references are placed by `scheme`; replaces an earlier scheme.

    A DreamOmni MODEL is placed by its own network. Raises ValueError for a network that is neither that nor
    FLUX.1, or whose wrapper ignores reference methods.
    """
    if isinstance(model.model, DreamOmniModel):
        return with_positions(model, scheme)
    network = flux_network(model)
    patched = model.clone()
    for kind in (WrappersMP.DIFFUSION_MODEL, WrappersMP.OUTER_SAMPLE):
        patched.remove_wrappers_with_key(kind, KEY)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, position_wrapper(network, scheme))
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, checked_sampling)
    return patched


def with_positions(model: Any, scheme: PositionScheme) -> Any:
    """A clone of a DreamOmni ModelPatcher whose references are placed by `scheme`."""
    patched = model.clone()
    options = patched.model_options
    patched.model_options = {
        **options,
        "transformer_options": {**options.get("transformer_options", {}), POSITIONS: scheme.value},
    }
    return patched


def flux_network(model: Any, purpose: str = "the position encoding") -> Any:
    """The FLUX.1 network inside a ModelPatcher; raises ValueError for anything else, saying what it is."""
    network = model.get_model_object("diffusion_model")
    network = getattr(network, "_orig_mod", network)  # torch.compile's shell
    if "nunchaku" in type(network).__module__.lower():
        raise ValueError(
            "this MODEL is a nunchaku Flux: its wrapper ignores reference methods, so every reference would "
            "get the same index. Load Kontext with Load Kontext, Load Diffusion Model or a GGUF loader."
        )
    if not isinstance(network, comfy.ldm.flux.model.Flux):
        raise ValueError(
            f"{purpose} is for FLUX.1 Kontext; this MODEL is {type(model.model).__name__} "
            f"({type(network).__name__}). Connect a Kontext MODEL."
        )
    if len(network.params.axes_dim) != 3:
        raise ValueError(
            f"this MODEL is a Flux with {len(network.params.axes_dim)} position axes (FLUX.2); {purpose} "
            "belongs to FLUX.1 Kontext, which has 3. Connect a Kontext MODEL."
        )
    return network


def position_wrapper(network: Any, scheme: PositionScheme) -> Callable[..., Tensor]:
    """A DIFFUSION_MODEL wrapper that places the references of each call by `scheme`."""
    patch = network.patch_size
    index_step = getattr(network.params, "ref_index_scale", 1.0)

    def place(
        executor: Callable[..., Tensor],
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        guidance: Tensor | None = None,
        ref_latents: Sequence[Tensor] | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **more: Any,
    ) -> Tensor:
        options = transformer_options or {}
        if ref_latents:
            grids = [latent_grid(*latent.shape[-2:], patch) for latent in ref_latents]
            first = latent_grid(*x.shape[-2:], patch).num_tokens
            options = with_post_input(options, id_mover(first, grids, scheme, index_step))
            more = {**more, "ref_latents_method": "index"}
        return executor(x, timestep, context, y, guidance, ref_latents, control, options, **more)

    return place


def with_post_input(options: dict[str, Any], patch: Callable[[dict], dict]) -> dict[str, Any]:
    """A copy of the transformer options with `patch` in front of those that see the embedded tokens."""
    patches = options.get("patches", {})
    return {**options, "patches": {**patches, "post_input": [patch, *patches.get("post_input", [])]}}


def id_mover(
    first: int, grids: Sequence[Grid], scheme: PositionScheme, index_step: float
) -> Callable[[dict], dict]:
    """A patch turning the ids of ComfyUI's `index` method, from token `first` on, into `scheme`'s."""

    def move(tokens: dict[str, Any]) -> dict[str, Any]:
        ids, start = tokens["img_ids"].clone(), first
        for order, (grid, placement) in enumerate(
            zip(grids, reference_placements(grids, scheme), strict=True), start=1
        ):
            span = ids[:, start : start + grid.num_tokens]
            if index_shift := placement.index - order * index_step:
                span[..., 0] += index_shift
            if placement.column:
                span[..., 2] += placement.column
            start += grid.num_tokens
        return {**tokens, "img_ids": ids}

    return move


def checked_sampling(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """An OUTER_SAMPLE wrapper: refuses text and latents that the network cannot read, or would cut."""
    every = [one for group in getattr(executor.class_obj, "conds", {}).values() for one in group]
    for condition in every:
        check_text(condition)
    channels = executor.class_obj.model_patcher.get_model_object("latent_format").latent_channels
    for condition in every:
        check_references(condition.get("reference_latents") or [], noise, channels, FLUX_VAE)
    return executor(noise, *args, **kwargs)


def check_text(condition: dict[str, Any]) -> None:
    """Raise ValueError unless a condition carries what CLIP Text Encode gives; says where it came from."""
    tokens = condition.get("cross_attn")
    if "dreamomni_image_index" in condition:
        found = "is VLM Encode's"
    elif tokens is not None and tokens.dtype == torch.int64:
        found = "is OmniGen Encode's"
    elif "pooled_output" not in condition:
        found = "has no pooled text"
    else:
        return
    raise ValueError(
        f"this conditioning {found}, but Kontext reads CLIP Text Encode's. Use that node; to have "
        "DreamOmni2's VLM write the prompt, connect Rewrite Prompt's text to it."
    )

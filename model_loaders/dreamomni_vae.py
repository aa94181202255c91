"""The VAE of a DreamOmni folder as ComfyUI's VAE: our small one, pixel blocks, or a stock file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths

from ..dit.dreamomni.latent import LatentSpec
from ..dit.dreamomni.storage import CONFIG, VAE_WEIGHTS, load_vae
from ..dit.dreamomni.vae import PixelBlocks, SmallVAE
from ..dit.weight_format import require_safetensors
from .weight_files import SUFFIXES

PIXEL_BYTES = 24
"""Numbers alive at once for each pixel and channel of the widest layer, generously."""


def open_vae(folder: Path, name: str, spec: LatentSpec) -> Any:
    """ComfyUI's VAE for a network's latents.

    Raises FileNotFoundError or ValueError where the file is missing or makes other latents.
    """
    if spec.kind == "pixels":
        return host_vae(PixelBlocks(spec.downscale), spec, channels=3)
    if spec.kind == "small":
        module = load_vae(folder / name)
        vae = host_vae(module, spec, channels=max(module.config.widths))
    else:
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(stock_file(folder, name)), safe_load=True))
        vae.throw_exception_if_invalid()
    found = (vae.latent_channels, vae.spacial_compression_encode())
    if isinstance(module := vae.first_stage_model, SmallVAE):
        found = (module.config.latent_channels, module.config.downscale)
    if found != (spec.channels, spec.downscale):
        raise ValueError(
            f"the VAE in {folder.name} makes {found[0]} channels at 1/{found[1]} size, the network needs "
            f"{spec.channels} at 1/{spec.downscale}: put the {spec.kind} VAE there"
        )
    return vae


def stock_file(folder: Path, name: str) -> Path:
    """The one safetensors file in `folder/name`, that file itself, or the file `name` of models/vae.

    Raises FileNotFoundError where there is none, ValueError for a file of another format.
    """
    place = folder / name
    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place] if place.is_file() else []
    shared = None if files else folder_paths.get_full_path("vae", name)
    found = [Path(shared)] if shared else files
    if len(found) == 1:
        require_safetensors([found[0].name], str(folder / CONFIG), SUFFIXES)
        return found[0]
    problem = f"holds {', '.join(path.name for path in files)}: keep one" if files else "does not exist"
    raise FileNotFoundError(
        f"{place} {problem}. Put the VAE file there ({VAE_WEIGHTS} of our small VAE, ae.safetensors of Flux, "
        'sdxl_vae.safetensors), or write the name of a file in models/vae as "vae" in config.json.'
    )


def host_vae(module: nn.Module, spec: LatentSpec, channels: int) -> Any:
    """ComfyUI's VAE object around a module with `encode` and `decode` of pictures in -1..1."""
    # The host's own pixel VAE has every attribute this version of the class needs; ours replaces its network.
    vae: Any = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    module = module.eval().requires_grad_(False).to(vae.vae_dtype)
    vae.first_stage_model = module
    vae.downscale_ratio = vae.upscale_ratio = spec.downscale
    vae.latent_channels = spec.channels
    size = comfy.model_management.dtype_size(vae.vae_dtype)
    pixel = PIXEL_BYTES * channels * size
    vae.memory_used_encode = lambda shape, dtype: pixel * shape[-2] * shape[-1]
    vae.memory_used_decode = lambda shape, dtype: pixel * shape[-2] * shape[-1] * spec.downscale**2
    vae.patcher = type(vae.patcher)(
        module,
        load_device=vae.device,
        offload_device=comfy.model_management.vae_offload_device(),
    )
    vae.size = None
    vae.model_size()
    return vae

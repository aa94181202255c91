"""Stand-ins for the Kontext workflows: a random Flux, its VAE and its text encoders, all tiny."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from host_models import TINY, diffusers_kontext, kontext_weights, write_kontext
from lora_files import add_random_lora, write_fused

from . import StandIn
from .autoencoders import write_taesd

MODEL = "flux1-dev-kontext_fp8_scaled.safetensors"


def write_kontext_models(models: Path) -> None:
    """A tiny Kontext, its two LoRAs and a random small VAE of Flux's shape, named as the real files."""
    weights = kontext_weights()
    write_kontext(models / "diffusion_models" / MODEL, weights)
    for seed, task in enumerate(("edit", "generate")):
        network = diffusers_kontext(weights)
        add_random_lora(network, seed)
        (models / "loras").mkdir(parents=True, exist_ok=True)
        write_fused(models / "loras" / f"dreamomni2_{task}.safetensors", network, kohya=True)
    write_taesd(models / "vae" / "ae.safetensors", channels=16)


def kontext(workflow: str, **more: Any) -> StandIn:
    """A Kontext workflow on small pictures with two steps."""
    settings = {
        "DreamOmniReferenceSet.resize": "none",
        "DreamOmniSchedule.steps": 2,
        "BasicScheduler.steps": 2,
        "KSampler.steps": 2,
        "EmptySD3LatentImage.width": 128,
        "EmptySD3LatentImage.height": 96,
    }
    return StandIn(
        workflow=workflow,
        write_models=write_kontext_models,
        replaced={
            "UNETLoader": ("DreamOmniLoadKontext", {"unet_name": MODEL, "weight_dtype": "default"}),
            "DualCLIPLoader": (
                "StandInFluxCLIP",
                {"text_dim": TINY.text_dim, "pooled_dim": TINY.pooled_dim},
            ),
        },
        settings=settings | more,
    )


def write_painted_region(inputs: Path) -> None:
    """Image 1 of the workflow as the mask editor saves it: transparent where it may change."""
    from PIL import Image

    path = inputs / "painted-cup.png"
    picture = Image.open(path).convert("RGBA")
    width, height = picture.size
    alpha = Image.new("L", picture.size, 255)
    alpha.paste(0, (width // 4, height // 4, width // 2, height // 2))
    picture.putalpha(alpha)
    picture.save(path)


STAND_INS = [
    kontext("edit-with-references"),
    dataclasses.replace(kontext("edit-region"), write_inputs=write_painted_region),
    kontext("generate-from-references"),
    kontext("position-encoding-comparison"),
    kontext("feature-mixing"),
]

"""Stand-ins for the VLM workflows: a tiny Qwen2.5-VL that always writes the same tagged prompt."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from host_models import diffusers_kontext, kontext_weights
from lora_files import add_random_lora, write_by_diffusers
from tiny_vlm import write_scripted_vlm

from .kontext import kontext, write_kontext_models

VLM = "dreamomni2-vlm"
LORAS = ("dreamomni2_edit.safetensors", "dreamomni2_generate.safetensors")


def write_models(models: Path) -> None:
    """The tiny Kontext, two task LoRAs and the tiny VLM, under the names of the real files."""
    write_kontext_models(models)
    for seed, name in enumerate(LORAS):
        (models / "loras").mkdir(parents=True, exist_ok=True)
        network = diffusers_kontext(kontext_weights())
        write_by_diffusers(models / "loras" / name, network, add_random_lora(network, seed))
    if not (models / "vlm" / VLM).exists():
        write_scripted_vlm(models / "vlm" / VLM)


STAND_INS = [dataclasses.replace(kontext("rewrite-then-edit"), write_models=write_models)]

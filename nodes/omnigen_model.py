"""What changes an OmniGen MODEL: LoRAs of any layout, and where along the noise guidance is computed."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..model_loaders.guidance_interval import limit_guidance
from ..model_loaders.lora import FOLDER, apply_lora
from ..model_loaders.weight_files import safetensors_names
from .fingerprints import lora_state
from .lora import strength_input
from .notes import show_note
from .schema import node_input, node_schema
from .types import CATEGORY


class OmniGenLoRA(io.ComfyNode):
    """Puts a LoRA of any layout on an OmniGen MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniOmniGenLoRA",
            display_name="OmniGen LoRA",
            category=f"{CATEGORY}/model",
            description="Applies an OmniGen LoRA: the authors' PEFT files, diffusers' and ComfyUI's names.",
            search_aliases=["LoraLoader", "omnigen lora", "peft"],
            inputs=[
                node_input(io.Model, "model", tooltip="From Load OmniGen; the input is not changed."),
                node_input(
                    io.Combo,
                    "lora_name",
                    options=safetensors_names(FOLDER),
                    tooltip="A file in models/loras; adapter_config.json beside adapter_model.safetensors is "
                    "read for its alpha.",
                ),
                strength_input("1 is what the LoRA was trained for, 0 leaves the model as it is."),
            ],
            outputs=[io.Model.Output("model_out", display_name="model")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **_: object) -> str:
        return lora_state(lora_name)

    @classmethod
    def execute(cls, model: Any, lora_name: str, strength: float) -> io.NodeOutput:
        """The MODEL with the LoRA, and a note on the node of what it changed."""
        patched, report = apply_lora(model, lora_name, strength)
        show_note(cls, str(report))
        return io.NodeOutput(patched)


class GuidanceInterval(io.ComfyNode):
    """Keeps guidance to the steps between two sigmas."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        share = {"min": 0.0, "max": 1.0, "step": 0.01, "round": 0.001}
        return node_schema(
            node_id="DreamOmniGuidanceInterval",
            display_name="Guidance Interval",
            category=f"{CATEGORY}/model",
            description="For rectified-flow models: computes the negative and image-only branches between "
            "two sigmas only; elsewhere the positive prediction is used alone, one pass instead of 2 or 3.",
            search_aliases=["cfg interval", "guidance limited interval", "skip cfg"],
            inputs=[
                node_input(
                    io.Model,
                    "model",
                    tooltip="A rectified-flow MODEL (Kontext, OmniGen, DreamOmni, ...), for any guider.",
                ),
                node_input(
                    io.Float,
                    "start_sigma",
                    default=1.0,
                    tooltip="Noise share from which on guidance works; 1 is pure noise.",
                    **share,
                ),
                node_input(
                    io.Float,
                    "end_sigma",
                    default=0.25,
                    tooltip="Noise share at and below which it stops; details need little guidance.",
                    **share,
                ),
            ],
            outputs=[io.Model.Output("model_out", display_name="model")],
        )

    @classmethod
    def execute(cls, model: Any, start_sigma: float, end_sigma: float) -> io.NodeOutput:
        """A clone that drops the guidance branches outside the interval."""
        return io.NodeOutput(limit_guidance(model, start_sigma, end_sigma))


NODES = [OmniGenLoRA, GuidanceInterval]

"""Kontext: the model, and the places of its references."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..dit.positions import PositionScheme
from ..model_loaders.kontext import FOLDER, WEIGHT_DTYPES, kontext_names, load_kontext
from ..model_loaders.patches import attach_position_encoding
from .choices import chosen
from .fingerprints import weights_state
from .notes import replace_notes
from .schema import node_input, node_schema
from .types import CATEGORY

PLACED = "Position Encoding gives the pictures their places."


class LoadKontext(io.ComfyNode):
    """Loads a Kontext checkpoint."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniLoadKontext",
            display_name="Load Kontext",
            category=f"{CATEGORY}/load",
            description="Loads FLUX.1 Kontext from models/diffusion_models: one file in BFL's or diffusers' "
            "layout, a folder of shards, fp8 or scaled fp8.",
            search_aliases=["UNETLoader", "flux kontext loader", "diffusers folder"],
            inputs=[
                node_input(
                    io.Combo,
                    "unet_name",
                    options=kontext_names(),
                    tooltip="A file, or the folder of a sharded model, in models/diffusion_models.",
                ),
                node_input(
                    io.Combo,
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip="default: as the file and your GPU suggest. fp8: half the memory of bf16, "
                    "a little less precise; fast also multiplies in fp8.",
                ),
            ],
            outputs=[io.Model.Output("model", display_name="model")],
        )

    @classmethod
    def fingerprint_inputs(cls, unet_name: str | None = None, **_: object) -> str:
        return weights_state(FOLDER, unet_name)

    @classmethod
    def execute(cls, unet_name: str, weight_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(load_kontext(unet_name, weight_dtype))


class PositionEncoding(io.ComfyNode):
    """Places the references as DreamOmni2 was trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniPositionEncoding",
            display_name="Position Encoding",
            category=f"{CATEGORY}/model",
            description="Tells the reference images apart for a Kontext MODEL from any loader. "
            "DreamOmni2 needs index+offset; with one reference all four are the same.",
            search_aliases=["FluxKontextMultiReferenceLatentMethod", "reference method", "index offset"],
            inputs=[
                node_input(io.Model, "model", tooltip="A FLUX.1 Kontext MODEL; the input is not changed."),
                node_input(
                    io.Combo,
                    "encoding",
                    options=[scheme.value for scheme in PositionScheme],
                    tooltip="index+offset: own index for each image, and each starts to the right of the one "
                    "before (DreamOmni2). The others leave one or both out, for comparison.",
                ),
            ],
            outputs=[io.Model.Output("model_out", display_name="model")],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, model: Any, encoding: str) -> io.NodeOutput:
        encoded = attach_position_encoding(model, chosen(PositionScheme, "encoding", encoding))
        replace_notes(cls, "DreamOmniReferenceConditioning", PLACED)
        return io.NodeOutput(encoded)


NODES = [LoadKontext, PositionEncoding]

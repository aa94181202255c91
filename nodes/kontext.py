"""Kontext: the model and the places of its references."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..dit.positions import PositionScheme
from ..model_loaders.patches import attach_position_encoding
from .schema import node_input, node_schema
from .types import CATEGORY


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
        )

    @classmethod
    def execute(cls, model: Any, encoding: str) -> io.NodeOutput:
        return io.NodeOutput(attach_position_encoding(model, PositionScheme(encoding)))


NODES = [PositionEncoding]

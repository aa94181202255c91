"""Pairs of pictures that share something, made by FLUX.1 from two prompts."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..model_loaders.feature_mixing import MixingRange, attach_feature_mixing
from ..model_loaders.paired_inputs import pair_conditioning, pair_latent
from .schema import node_input, node_schema
from .types import CATEGORY


class FeatureMixing(io.ComfyNode):
    """Denoises two pictures together, the second with the first one's features in its attention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        defaults = MixingRange()
        return node_schema(
            node_id="DreamOmniFeatureMixing",
            display_name="Feature Mixing",
            category=f"{CATEGORY}/model",
            description="Makes pairs of pictures that share an object or an attribute from two prompts, with "
            "a FLUX.1 text-to-image MODEL: the first stage of DreamOmni2's training data.",
            search_aliases=["shared attention", "pair generation", "extraction data", "diptych"],
            inputs=[
                node_input(
                    io.Model,
                    "model",
                    tooltip="FLUX.1 dev or schnell from any loader; the input is not changed.",
                ),
                node_input(
                    io.Conditioning,
                    "source",
                    tooltip="The prompt of the first picture, which is made as without this node.",
                ),
                node_input(
                    io.Conditioning,
                    "target",
                    tooltip="The prompt of the second picture. Name in it what both should share.",
                ),
                node_input(
                    io.Latent,
                    "latent",
                    tooltip="An empty latent; its batch_size is the number of pairs.",
                ),
                percent_input(
                    "start_percent",
                    defaults.start_percent,
                    "Where mixing begins; 0 is pure noise. Counted as in Apply ControlNet.",
                ),
                percent_input(
                    "end_percent",
                    defaults.end_percent,
                    "Where mixing ends; 1 is the end. The same as start_percent: no mixing.",
                ),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="model"),
                io.Conditioning.Output("conditioning", display_name="conditioning"),
                io.Latent.Output("latent_out", display_name="latent"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        source: list,
        target: list,
        latent: dict,
        start_percent: float = MixingRange().start_percent,
        end_percent: float = MixingRange().end_percent,
    ) -> io.NodeOutput:
        when = MixingRange(start_percent=start_percent, end_percent=end_percent)
        return io.NodeOutput(
            attach_feature_mixing(model, when), pair_conditioning(source, target), pair_latent(latent)
        )


def percent_input(name: str, default: float, tooltip: str) -> io.Input:
    """A point on the way from noise (0) to picture (1)."""
    return node_input(
        io.Float,
        name,
        default=default,
        min=0.0,
        max=1.0,
        step=0.01,
        round=0.001,
        optional=True,
        advanced=True,
        tooltip=tooltip,
    )


NODES = [FeatureMixing]

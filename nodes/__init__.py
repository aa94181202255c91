"""The ComfyUI faces of the pack; each file ends with the list of its nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ..model_loaders.paths import register_folders
from . import (
    dataset,
    dreamomni,
    example,
    feature_mixing,
    kontext,
    lora,
    omnigen,
    omnigen_model,
    reference_cache,
    references,
    sampling,
    small_vae,
    training,
    training_report,
    training_translator,
    vlm,
)

NODES: list[type[io.ComfyNode]] = [
    *dataset.NODES,
    *dreamomni.NODES,
    *example.NODES,
    *feature_mixing.NODES,
    *kontext.NODES,
    *lora.NODES,
    *omnigen.NODES,
    *omnigen_model.NODES,
    *reference_cache.NODES,
    *references.NODES,
    *sampling.NODES,
    *small_vae.NODES,
    *training.NODES,
    *training_report.NODES,
    *training_translator.NODES,
    *vlm.NODES,
]


class DreamOmniExtension(ComfyExtension):
    """Everything the pack offers to ComfyUI."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes of the pack; their choices list the model folders, which are registered first."""
        register_folders()
        return NODES

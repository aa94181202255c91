"""The LoRA of the task on the reference wire."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..dit.references import ReferenceSet, Task
from ..model_loaders.lora import apply_lora, lora_names
from .fingerprints import lora_state
from .notes import show_note
from .schema import node_input, node_schema
from .types import CATEGORY, References

NO_LORA = "none"


def strength_input(tooltip: str) -> io.Input:
    """How much of a LoRA is applied."""
    return node_input(
        io.Float, "strength", default=1.0, min=-4.0, max=4.0, step=0.05, round=0.001, tooltip=tooltip
    )


class TaskLoRA(io.ComfyNode):
    """Switches between the edit and the generate LoRA by the task of the references."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [NO_LORA, *lora_names()]
        return node_schema(
            node_id="DreamOmniTaskLoRA",
            display_name="Task LoRA",
            category=f"{CATEGORY}/model",
            description="Applies the edit or the generate LoRA, by the task of the references. "
            "Without reference images the model stays as it is.",
            search_aliases=["LoraLoader", "edit lora", "gen lora", "lora switch"],
            inputs=[
                node_input(
                    io.Model, "model", tooltip="A Kontext or DreamOmni MODEL; the input is not changed."
                ),
                node_input(References, "references", tooltip="From Reference Images; brings the task."),
                node_input(io.Combo, "edit_lora", options=names, tooltip="For the task edit."),
                node_input(io.Combo, "generate_lora", options=names, tooltip="For the task generate."),
                strength_input("1 is what the LoRAs were trained for, 0 switches them off."),
                node_input(
                    io.Boolean,
                    "source_alone",
                    default=True,
                    optional=True,
                    label_on="edit LoRA on",
                    label_off="edit LoRA off",
                    tooltip="When image_1 is the only image of an edit. Off: as DreamOmni2 does, the model "
                    "edits it by itself. On: for LoRAs trained on such edits.",
                ),
            ],
            outputs=[io.Model.Output("model_out", display_name="model")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(
        cls, edit_lora: str | None = None, generate_lora: str | None = None, **_: object
    ) -> str:
        return lora_state(edit_lora) + lora_state(generate_lora)

    @classmethod
    def execute(
        cls,
        model: Any,
        references: ReferenceSet,
        edit_lora: str,
        generate_lora: str,
        strength: float,
        source_alone: bool = True,
    ) -> io.NodeOutput:
        name = {Task.EDIT: edit_lora, Task.GENERATE: generate_lora}[references.task]
        if reason := why_off(references, name, strength, source_alone):
            show_note(cls, f"LoRA off: {reason}")
            return io.NodeOutput(model)
        patched, report = apply_lora(model, name, strength)
        show_note(cls, str(report))
        return io.NodeOutput(patched)


def why_off(references: ReferenceSet, name: str, strength: float, source_alone: bool) -> str | None:
    """Why no LoRA is applied, or None if one is."""
    if not references.images:
        return "no reference image"
    if name == NO_LORA:
        return f"none chosen for {references.task.value}"
    if not source_alone and references.task is Task.EDIT and len(references.images) == 1:
        return "only the picture to edit"
    return "strength 0" if strength == 0 else None


NODES = [TaskLoRA]

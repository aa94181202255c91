"""Reference pictures on one wire, and their latents in the conditioning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from comfy_api.latest import io

from ..dit.references import MAX_REFERENCES, ReferenceSet, ResizeRule, Task, build_references
from ..dit.sizes import DEFAULT_SIZE, published_target_size
from ..model_loaders.reference_latents import append_reference_latents, empty_latent, encode_references
from ..training.config import one_of
from .choices import chosen
from .notes import graph_of, show_note
from .schema import node_input, node_schema
from .types import CATEGORY, References

NO_IMAGES = "No image connected: plain text to image, LoRA switch off."
PLACING_NODES = frozenset({"DreamOmniPositionEncoding", "DreamOmniLoadDreamOmni"})
"""With one of these in a graph the pictures have places; DreamOmni's network brings its own scheme."""
IMAGE_1_SIZE = "image_1"
PUBLISHED_SIZE = "as published"
LATENT_SIZES = (IMAGE_1_SIZE, PUBLISHED_SIZE)


class ReferenceSetNode(io.ComfyNode):
    """Collects the pictures of one request."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        orders = range(1, MAX_REFERENCES + 1)
        return node_schema(
            node_id="DreamOmniReferenceSet",
            display_name="Reference Images",
            category=f"{CATEGORY}/references",
            description="Up to five pictures in order, with the task, on one wire. "
            "For an edit, image_1 is the picture to change.",
            search_aliases=["multi reference", "kontext references", "dreamomni2", "edit image"],
            inputs=[
                node_input(
                    io.Combo,
                    "task",
                    options=[task.value for task in Task],
                    tooltip="edit: change image_1 with the help of the others. "
                    "generate: make a new picture from things in the images.",
                ),
                node_input(
                    io.Combo,
                    "resize",
                    options=[rule.value for rule in ResizeRule],
                    tooltip="kontext: every image to the nearest of Kontext's 17 sizes, as in training. "
                    "none: keep sizes; sides are filled up to a multiple of 16 with the edge pixels. "
                    "exact: never filled up, for small DreamOmni networks.",
                ),
                *(
                    node_input(
                        io.Image,
                        f"image_{n}",
                        optional=True,
                        tooltip="The picture to edit; a batch is edited one by one."
                        if n == 1
                        else f"Reference {n}: say 'image {n}' in the instruction. Leave no gap before it.",
                    )
                    for n in orders
                ),
            ],
            outputs=[
                References.Output("references", display_name="references"),
                io.Image.Output("image", display_name="image_1", tooltip="Image 1 as the model sees it."),
                io.Int.Output("width", display_name="width"),
                io.Int.Output("height", display_name="height"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, task: str, resize: str, **images: Tensor | None) -> io.NodeOutput:
        slots = [images.get(f"image_{n}") for n in range(1, MAX_REFERENCES + 1)]
        rule = chosen(ResizeRule, "resize", resize)
        references = build_references(chosen(Task, "task", task), rule, slots)
        if not references.images:
            show_note(cls, NO_IMAGES)
            return io.NodeOutput(references, ExecutionBlocker(None), *DEFAULT_SIZE)
        show_note(cls, set_note(references))
        first = references.images[0]
        return io.NodeOutput(references, first, first.shape[2], first.shape[1])


class ReferenceConditioning(io.ComfyNode):
    """Adds the references' latents to a conditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniReferenceConditioning",
            display_name="Reference Conditioning",
            category=f"{CATEGORY}/references",
            description="Encodes each reference image once and adds them, in order, to the conditioning.",
            search_aliases=["ReferenceLatent", "kontext references"],
            inputs=[
                node_input(io.Conditioning, "conditioning", tooltip="The encoded prompt."),
                node_input(io.Vae, "vae", tooltip="The VAE of the model: Flux's ae.safetensors for Kontext."),
                node_input(References, "references", tooltip="From Reference Images."),
                node_input(
                    io.Combo,
                    "latent_size",
                    options=list(LATENT_SIZES),
                    default=IMAGE_1_SIZE,
                    optional=True,
                    advanced=True,
                    tooltip="image_1: the result is exactly as large as image 1. as published: the size the "
                    "DreamOmni2 pipeline makes, 16 pixels less per side for 672x1568 and 800x1328.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("conditioning_out", display_name="conditioning"),
                io.Latent.Output("latent", display_name="latent", tooltip="Empty, for the result."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(
        cls, conditioning: list, vae: object, references: ReferenceSet, latent_size: str = IMAGE_1_SIZE
    ) -> io.NodeOutput:
        one_of("latent_size", latent_size, LATENT_SIZES)
        latents = encode_references(vae, references)
        width, height = target_size(references, latent_size)
        empty = empty_latent(vae, references.batch_size, width, height)
        with_latents = append_reference_latents(conditioning, latents)
        show_note(cls, places_note(with_latents, graph_of(cls)))
        return io.NodeOutput(with_latents, {"samples": empty})


def set_note(references: ReferenceSet) -> str:
    """What was put together; always some text, so that no older one stays on the node."""
    count, batch = len(references.images), references.batch_size
    if batch > 1:
        return f"image_1 is a batch of {batch}: {batch} results."
    return f"{count} picture{'s' if count > 1 else ''}, task {references.task.value}."


def places_note(conditioning: list, graph: Mapping[str, Any]) -> str:
    """How many references there are, and whether nothing in the graph gives them places of their own."""
    count = max((len(extra.get("reference_latents", [])) for _, extra in conditioning), default=0)
    present = {node["class_type"] for node in graph.values()}
    if count > 1 and present and present.isdisjoint(PLACING_NODES):
        return (
            f"{count} pictures, and no Position Encoding in this graph: DreamOmni2 would mix them. "
            "Put it behind the LoRA."
        )
    return f"{count} picture{'' if count == 1 else 's'} in the conditioning."


def target_size(references: ReferenceSet, latent_size: str) -> tuple[int, int]:
    """(width, height) of the result in pixels."""
    if not references.images:
        return DEFAULT_SIZE
    height, width = references.images[0].shape[1:3]
    return published_target_size(width, height) if latent_size == PUBLISHED_SIZE else (width, height)


NODES = [ReferenceSetNode, ReferenceConditioning]

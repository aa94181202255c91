"""DreamOmni: loading a model folder, and the prompts and sources of its tasks."""

from __future__ import annotations

from torch import Tensor

from comfy_api.latest import io

from ..dit.dreamomni.drag import DragOperation, drag_prompt
from ..dit.dreamomni.drag_points import EXAMPLE, points_from_text
from ..dit.dreamomni.masking import Border, masked_source
from ..dit.references import flatten_on_white
from ..dit.sizes import MAX_SIDE
from ..model_loaders.dreamomni import WEIGHT_DTYPES, load_dreamomni
from ..model_loaders.paths import model_folder, model_folder_names
from .choices import chosen
from .fingerprints import dreamomni_state
from .notes import show_note
from .schema import node_input, node_schema
from .types import CATEGORY, Vlm

NOTHING_MASKED = "Nothing is masked and no border is added: the picture goes on unchanged."
SIDES = ("left", "top", "right", "bottom")


class LoadDreamOmni(io.ComfyNode):
    """Opens a DreamOmni folder from models/dreamomni."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniLoadDreamOmni",
            display_name="Load DreamOmni",
            category=f"{CATEGORY}/load",
            description="Opens a DreamOmni folder: its network as a MODEL for any sampler, "
            "its vision language model and its VAE.",
            search_aliases=["dreamomni v1", "unified generation and editing"],
            inputs=[
                node_input(
                    io.Combo,
                    "model_name",
                    options=model_folder_names("dreamomni"),
                    tooltip="A folder in models/dreamomni: dit.safetensors, config.json, vlm/ and vae/.",
                ),
                node_input(
                    io.Combo,
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip="default: as stored and as the card computes. fp8 halves the memory of the "
                    "network's weights; it still computes in bf16 or fp32.",
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="model"),
                Vlm.Output("vlm", display_name="vlm", tooltip="For VLM Encode."),
                io.Vae.Output("vae", display_name="vae"),
            ],
        )

    @classmethod
    def validate_inputs(cls, weight_dtype: str | None = None) -> bool | str:
        # A linked input is None here.
        return (
            weight_dtype in (None, *WEIGHT_DTYPES)
            or f"weight_dtype must be one of {', '.join(WEIGHT_DTYPES)}"
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str | None = None, **_: object) -> str:
        return dreamomni_state(model_name)

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(*load_dreamomni(model_folder("dreamomni", model_name), weight_dtype))


class DragPrompt(io.ComfyNode):
    """Writes where points of an object go, in DreamOmni's prompt format."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniDragPrompt",
            display_name="Drag Prompt",
            category=f"{CATEGORY}/conditioning",
            description="Writes the instruction that moves, scales or rotates one object of a picture "
            "as points and displacements, in the format of the DreamOmni paper.",
            search_aliases=["drag edit", "move object", "rotate object", "DragGAN"],
            inputs=[
                node_input(io.Int, "width", default=1024, min=1, max=MAX_SIDE, tooltip="Picture width, px."),
                node_input(
                    io.Int, "height", default=1024, min=1, max=MAX_SIDE, tooltip="Picture height, px."
                ),
                node_input(
                    io.Combo,
                    "operation",
                    options=[operation.value for operation in DragOperation],
                    tooltip="What happens to the object.",
                ),
                node_input(
                    io.String,
                    "points",
                    multiline=True,
                    default=EXAMPLE,
                    tooltip="One point per line in pixels: 'x, y' or 'x, y -> x, y'. To scale or rotate, the "
                    "first line is the centre; without goals, angle or factor moves the other points.",
                ),
                node_input(
                    io.String,
                    "subject",
                    default="the red ball",
                    tooltip="The object that is dragged, as you would name it to somebody.",
                ),
                node_input(
                    io.Float,
                    "angle",
                    default=0.0,
                    min=-360.0,
                    max=360.0,
                    step=1.0,
                    round=0.01,
                    optional=True,
                    tooltip="Degrees of the rotation, clockwise on the screen, for points without goals.",
                ),
                node_input(
                    io.Float,
                    "factor",
                    default=1.0,
                    min=0.01,
                    max=100.0,
                    step=0.05,
                    round=0.001,
                    optional=True,
                    tooltip="How much larger the object becomes, for points without goals.",
                ),
            ],
            outputs=[io.String.Output("prompt", display_name="prompt")],
        )

    @classmethod
    def execute(
        cls,
        width: int,
        height: int,
        operation: str,
        points: str,
        subject: str,
        angle: float = 0.0,
        factor: float = 1.0,
    ) -> io.NodeOutput:
        kind = chosen(DragOperation, "operation", operation)
        drag_points = points_from_text(points, kind, angle, factor)
        return io.NodeOutput(drag_prompt(drag_points, kind, (width, height), subject))


class MaskedSource(io.ComfyNode):
    """Paints black what is to be filled, as DreamOmni's in- and outpainting expects it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniMaskedSource",
            display_name="Masked Source",
            category=f"{CATEGORY}/references",
            description="Makes the source of inpainting and outpainting: masked areas and added borders are "
            "black. Connect it to Reference Images as image_1.",
            search_aliases=["inpaint", "outpaint", "pad image for outpainting"],
            inputs=[
                node_input(io.Image, "image", tooltip="The picture to fill or to extend."),
                node_input(
                    io.Mask,
                    "mask",
                    optional=True,
                    tooltip="White is painted anew; brought to its size. Not needed to extend only.",
                ),
                *(
                    node_input(
                        io.Int,
                        side,
                        default=0,
                        min=0,
                        max=MAX_SIDE,
                        step=8,
                        optional=True,
                        tooltip=f"Pixels of black border added at the {side}, for outpainting.",
                    )
                    for side in SIDES
                ),
            ],
            outputs=[
                io.Image.Output("masked", display_name="image", tooltip="Black where it is to be painted."),
                io.Mask.Output("area", display_name="mask", tooltip="White where it is to be painted."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        mask: Tensor | None = None,
        left: int = 0,
        top: int = 0,
        right: int = 0,
        bottom: int = 0,
    ) -> io.NodeOutput:
        source, area = masked_source(flatten_on_white(image), mask, Border(left, top, right, bottom))
        show_note(cls, mask_note(area))
        return io.NodeOutput(source, area)


def mask_note(area: Tensor) -> str:
    """How much is to be painted; always some text, so that no older one stays on the node."""
    share = 100 * float(area.float().mean())
    return f"{share:.3g} % is to be painted." if share else NOTHING_MASKED


NODES = [LoadDreamOmni, DragPrompt, MaskedSource]

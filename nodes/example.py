"""The pictures that come with the pack, so that its demo workflows run without files of the user's."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from comfy_api.latest import io, ui

from ..model_loaders import paths
from .pictures import image_of
from .schema import node_input, node_schema
from .types import CATEGORY

SHOWN_SIDE = 256


def pictures_folder() -> Path:
    """Where the shipped pictures lie."""
    return paths.SHIPPED / "demo" / "pictures"


def example_names() -> list[str]:
    """Every shipped picture but the answers, which are named `<case>.target`."""
    return sorted(path.stem for path in pictures_folder().glob("*.png") if not path.stem.endswith(".target"))


def read_example(name: str) -> Tensor:
    """The picture (1, height, width, 3), RGB 0..1; FileNotFoundError for a name that is not offered."""
    if name not in example_names():
        raise FileNotFoundError(
            f"the pack has no example picture {name!r}; it has: {', '.join(example_names()) or 'none'}. "
            "Choose one of them, or load a file of your own with Load Image."
        )
    with Image.open(pictures_folder() / f"{name}.png") as picture:
        return image_of(picture)


def enlarged(picture: Tensor) -> Tensor:
    """Every pixel as a square, so that a person sees something: about `SHOWN_SIDE` pixels high."""
    times = max(1, SHOWN_SIDE // picture.shape[1])
    return picture.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)


class ExamplePicture(io.ComfyNode):
    """One of the pictures that come with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniExamplePicture",
            display_name="Example Picture",
            category=f"{CATEGORY}/references",
            description="One of the small pictures that come with the pack, for its demo workflows and the "
            "small model. Use Load Image for your own.",
            search_aliases=["demo image", "sample image", "LoadImage"],
            inputs=[
                node_input(
                    io.Combo,
                    "picture",
                    options=example_names(),
                    tooltip="source: a picture to edit. ref_0, ref_1, ...: pictures to take things from.",
                ),
            ],
            outputs=[io.Image.Output("image", display_name="image", tooltip="In its own size.")],
        )

    @classmethod
    def execute(cls, picture: str) -> io.NodeOutput:
        image = read_example(picture)
        return io.NodeOutput(image, ui=ui.PreviewImage(enlarged(image), cls=cls))


NODES = [ExamplePicture]

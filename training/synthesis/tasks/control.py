"""Pictures from control maps: edges, segmentation, depth."""

from __future__ import annotations

from collections.abc import Callable

from ..library import SMALLEST_CROP
from ..plan import Plan, Reference, generate_plan
from ..scene import Background, Scene
from ..workshop import Unlucky, Workshop
from .generate import caption


def from_map(task: str, view: str) -> Callable[[Workshop], Plan]:
    """The task that draws a captioned scene from a map of it."""

    def make(shop: Workshop) -> Plan:
        scene = shop.scene(background=shop.background(("plain", "gradient"), told=True), told=True)
        reference = Reference(scene=scene, view=view, is_canvas=True)
        return generate_plan(task, caption(shop, scene), scene, (reference,))

    return make


def control_depth(shop: Workshop) -> Plan:
    """A photo from the depth map that lies beside it."""
    photos = [key for key, photo in shop.library.photos.items() if photo.depth is not None]
    if not photos:
        raise Unlucky
    key = shop.dice.choice(photos)
    crop = (shop.dice.uniform(0, 1), shop.dice.uniform(0, 1), shop.dice.uniform(SMALLEST_CROP, 1.0))
    scene = Scene(background=Background(kind="photo", colours=(), photo=key, crop=crop))
    words = shop.library.photos[key].caption or "A photo with this depth."
    return generate_plan(
        "control_depth", words, scene, (Reference(scene=scene, view="depth", is_canvas=True),)
    )


CONTROL_TASKS: dict[str, Callable[[Workshop], Plan]] = {
    "control_canny": from_map("control_canny", "canny"),
    "control_segmentation": from_map("control_segmentation", "segmentation"),
    "control_depth": control_depth,
}

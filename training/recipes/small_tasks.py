"""Which tasks each run of the small model trains, and how often each is drawn; every number is chosen."""

from __future__ import annotations

from typing import Any

Weighted = tuple[tuple[str, float], ...]

BASE_TASKS: Weighted = (
    ("text_to_image", 2.0),
    ("add", 2.0),
    ("remove", 2.0),
    ("replace", 2.0),
    ("recolour", 2.0),
    ("retexture", 1.0),
    ("move", 2.0),
    ("scale", 1.5),
    ("rotate", 1.0),
    ("inpaint", 1.0),
    ("segment", 1.0),
    ("detect", 1.0),
)
"""Text-to-image and editing trained jointly, and how often each is drawn."""
REFINE_TASKS: Weighted = (
    ("text_to_image", 4.0),
    ("add", 2.0),
    ("remove", 1.0),
    ("replace", 2.5),
    ("recolour", 2.0),
    ("retexture", 2.5),
    ("move", 2.0),
    ("scale", 2.0),
    ("rotate", 1.5),
    ("inpaint", 1.0),
    ("segment", 1.0),
    ("detect", 2.0),
)
"""The mix of the first run after the base, with more of what that one left blurred."""
JOINT_TASKS: Weighted = (
    ("text_to_image", 3.0),
    ("add", 1.0),
    ("remove", 0.75),
    ("replace", 2.0),
    ("recolour", 1.5),
    ("retexture", 2.5),
    ("move", 2.5),
    ("scale", 2.5),
    ("rotate", 2.5),
    ("inpaint", 0.75),
    ("segment", 0.5),
    ("detect", 2.5),
    ("reference_add", 2.5),
    ("reference_replace", 2.5),
    ("reference_attribute", 2.5),
    ("reference_generation", 1.5),
)
"""The mix of the second one: with requests that show several pictures, so that the VLM, which the adapters
leave as it is, has read such words."""
HARD_TASKS: Weighted = (
    ("text_to_image", 2.5),
    ("add", 0.6),
    ("remove", 0.5),
    ("replace", 1.5),
    ("recolour", 0.8),
    ("retexture", 2.5),
    ("move", 2.0),
    ("scale", 2.5),
    ("rotate", 3.0),
    ("inpaint", 0.5),
    ("segment", 0.4),
    ("detect", 2.5),
    ("reference_add", 3.0),
    ("reference_replace", 4.0),
    ("reference_attribute", 4.0),
    ("reference_generation", 0.6),
)
"""The mix of the third: mostly what the judge still found wrong."""
LATE_TASKS: Weighted = (
    ("text_to_image", 1.5),
    ("add", 0.5),
    ("remove", 0.4),
    ("replace", 1.2),
    ("recolour", 0.6),
    ("retexture", 1.8),
    ("move", 2.5),
    ("scale", 2.5),
    ("rotate", 6.0),
    ("inpaint", 0.4),
    ("segment", 0.4),
    ("detect", 4.0),
    ("reference_add", 3.0),
    ("reference_replace", 5.5),
    ("reference_attribute", 5.5),
    ("reference_generation", 0.4),
)
"""The mix of the fourth: more still of turning, boxes and what is borrowed from references."""
LAST_TASKS: Weighted = (
    ("text_to_image", 1.2),
    ("add", 0.4),
    ("remove", 0.4),
    ("replace", 0.8),
    ("recolour", 0.6),
    ("retexture", 0.8),
    ("move", 3.5),
    ("scale", 4.0),
    ("rotate", 9.0),
    ("inpaint", 0.4),
    ("segment", 0.4),
    ("detect", 5.0),
    ("reference_add", 1.5),
    ("reference_replace", 6.0),
    ("reference_attribute", 6.0),
    ("reference_generation", 0.4),
)
"""The mix of the fifth: what missed its target until then takes more than eight samples in ten."""
POINT_TASKS: Weighted = (
    ("text_to_image", 1.0),
    ("add", 0.4),
    ("remove", 0.4),
    ("replace", 0.6),
    ("recolour", 0.5),
    ("retexture", 0.8),
    ("move", 5.0),
    ("scale", 4.0),
    ("rotate", 13.0),
    ("inpaint", 0.4),
    ("segment", 0.4),
    ("detect", 6.0),
    ("reference_add", 1.5),
    ("reference_replace", 3.5),
    ("reference_attribute", 3.5),
    ("reference_generation", 0.4),
)
"""The mix of the sixth: turns, boxes, and what is told by points."""
TURN_TASKS: Weighted = (
    ("text_to_image", 1.6),
    ("add", 0.4),
    ("remove", 0.4),
    ("replace", 0.6),
    ("recolour", 0.5),
    ("retexture", 0.6),
    ("move", 5.5),
    ("scale", 2.5),
    ("rotate", 28.0),
    ("inpaint", 0.8),
    ("segment", 0.5),
    ("detect", 7.0),
    ("reference_add", 1.0),
    ("reference_replace", 2.5),
    ("reference_attribute", 2.0),
    ("reference_generation", 0.4),
)
"""The mix of the seventh: every second sample is a turn."""
EASY_TASKS: Weighted = (
    ("add", 1.0),
    ("remove", 1.0),
    ("replace", 1.0),
    ("recolour", 1.0),
    ("move", 1.0),
)
"""What training begins with."""
EASY_SCENES: dict[str, Any] = {"textures": ("plain",), "single_share": 0.5, "drag_share": 0.0}
"""The scenes it begins with, as settings that the recipe and the sticker pipeline share."""
LORA_TASKS: dict[str, Weighted] = {
    "edit": (("reference_add", 1.0), ("reference_replace", 1.0), ("reference_attribute", 1.0)),
    "generate": (("reference_generation", 1.0),),
}
"""The adapters for several pictures, and what each is taught."""
LORA_SINGLE_SHARE = 0.35
"""Share of their scenes with one object; the others bring requests with two and three references."""

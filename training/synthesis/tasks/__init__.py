"""Every task of the sticker pipeline by its name."""

from __future__ import annotations

from collections.abc import Callable

from ..edges import missing_edge_detector
from ..library import Library
from ..plan import Plan
from ..workshop import Workshop
from .control import CONTROL_TASKS
from .drag import DRAG_TASKS
from .extract import EXTRACT_TASKS
from .generate import GENERATE_TASKS
from .instruct import INSTRUCT_TASKS
from .marks import MARK_TASKS
from .reference import REFERENCE_TASKS

TASKS: dict[str, Callable[[Workshop], Plan]] = {
    **GENERATE_TASKS,
    **INSTRUCT_TASKS,
    **DRAG_TASKS,
    **MARK_TASKS,
    **REFERENCE_TASKS,
    **CONTROL_TASKS,
    **EXTRACT_TASKS,
}


def missing_material(task: str, library: Library) -> str | None:
    """What a task needs and the library has not, in words; None if it can be made."""
    if task == "control_depth" and not any(photo.depth for photo in library.photos.values()):
        return "control_depth needs a folder of backgrounds with a depth map NAME.depth.png beside NAME.jpg"
    return missing_edge_detector() if task == "control_canny" else None

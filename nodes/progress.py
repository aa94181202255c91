"""Progress, previews and cancelling, the same on every supported ComfyUI."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

import comfy.model_management
import comfy.utils

PREVIEW_SIZE = 512


def check_cancelled() -> None:
    """Raise ComfyUI's interruption if the user pressed Cancel; call it in every loop."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def progress_reporter(total: int) -> Callable[[int, Image.Image | None], None]:
    """A function (steps done, preview or None) that updates the node's bar and raises when cancelled."""
    bar = comfy.utils.ProgressBar(total)

    def report(done: int, preview: Image.Image | None = None) -> None:
        check_cancelled()
        bar.update_absolute(done, total, ("JPEG", preview, PREVIEW_SIZE) if preview is not None else None)

    return report

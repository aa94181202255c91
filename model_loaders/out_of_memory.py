"""What counts as a full device: newer ComfyUI knows more such errors than one class."""

from __future__ import annotations

import comfy.model_management as management


def raise_unless_out_of_memory(error: RuntimeError) -> None:
    """Raise `error` again unless it says that a device has no memory left."""
    known = getattr(management, "is_oom", None)
    full = known(error) if known is not None else isinstance(error, management.OOM_EXCEPTION)
    if not full:
        raise error

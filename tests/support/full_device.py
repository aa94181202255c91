"""Errors that say a device has no memory left, in the older and the newer way."""

from __future__ import annotations

import pytest

KINDS = ("class", "code")
"""By the class that every ComfyUI knows, and by the code that only newer ones ask for (`is_oom`)."""


class FullAcceleratorError(RuntimeError):
    """As torch.AcceleratorError is when a device is full."""

    error_code = 2


def full_error(kind: str, monkeypatch: pytest.MonkeyPatch) -> RuntimeError:
    """An error of this kind, in a ComfyUI that knows it."""
    import comfy.model_management as management

    older = management.OOM_EXCEPTION
    if kind == "class":
        return older("CUDA out of memory")
    known = lambda error: isinstance(error, older | FullAcceleratorError)
    monkeypatch.setattr(management, "is_oom", known, raising=False)
    return FullAcceleratorError("CUDA error: out of memory")

"""How much memory something new may take where a model runs, on the pinned host and on newer ones."""

from __future__ import annotations

from typing import Any

import torch

import comfy.model_management


def free_memory(patcher: Any, device: torch.device) -> float:
    """Bytes free on the device of a ModelPatcher, weights included that a newer host moves away when asked.

    Not for RAM while the model runs on a card: such weights lie on the card. No patcher, no such weights.
    """
    ask = getattr(patcher, "get_free_memory", None) or comfy.model_management.get_free_memory
    return ask(device)

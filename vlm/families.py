"""The VLM families of the pack, by the `model_type` of their config.json, and what that file says of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLASSES = {
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", "Qwen2VLProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor"),
}
"""Family -> names of transformers' classes of model and processor."""


def hidden_size(config: Mapping[str, Any], place: str) -> int:
    """Channels of a VLM's hidden states, from its config.json in the old or the new layout.

    Raises ValueError naming `place` where it does not say.
    """
    width = config.get("text_config", {}).get("hidden_size", config.get("hidden_size"))
    if not isinstance(width, int):
        raise ValueError(
            f"{place} does not say how wide the VLM's hidden states are (hidden_size); copy it from the "
            "release again"
        )
    return width

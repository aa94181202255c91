"""A MODEL's weights without the LoRAs that other nodes put on it."""

from __future__ import annotations

from typing import Any


def injections(model: Any) -> dict[str, list[Any]]:
    """What other nodes put beside the network's layers while it is loaded, by its name."""
    return {name: items for name, items in model.injections.items() if items}


def has_loras(model: Any) -> bool:
    """Whether LoRAs change the network: added to its weights, or beside them as newer hosts can."""
    return bool(model.patches or injections(model))


def without_patches(model: Any) -> Any:
    """A clone with the base weights: no LoRA, everything else as it is."""
    if not has_loras(model):
        return model
    base = model.clone()
    base.patches, base.injections, base.is_injected = {}, {}, False
    base.patches_uuid = type(model.patches_uuid)(int=model.patches_uuid.int ^ 1)  # other weights, other id
    return base

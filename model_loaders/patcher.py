"""A network whose model config we make, as ComfyUI's ModelPatcher, on the pinned host and on newer ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import comfy.model_management
import comfy.model_patcher


def make_patcher(
    model_config: Any,
    weights: dict[str, Tensor],
    again: tuple[Callable[..., Any], tuple[Any, ...]],
    disable_dynamic: bool,
) -> Any:
    """The ModelPatcher of a model config with `weights` loaded.

    `again` is the function and the arguments with which newer hosts make one of another kind.
    """
    offload = comfy.model_management.unet_offload_device()
    patcher_class = comfy.model_patcher.ModelPatcher
    if not disable_dynamic:
        patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", patcher_class)
    model = model_config.get_model(weights).to(offload)
    patcher = patcher_class(
        model, load_device=comfy.model_management.get_torch_device(), offload_device=offload
    )
    # Newer hosts ask for both; on the pinned one they do not exist.
    is_dynamic = getattr(patcher, "is_dynamic", None)
    model.load_model_weights(weights, "", **({"assign": is_dynamic()} if callable(is_dynamic) else {}))
    vars(patcher)["cached_patcher_init"] = again
    return patcher

"""The door through which other packs' DIFFUSION_MODEL wrappers reach a network of this pack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

import comfy.patcher_extension


def call_through_wrappers(
    forward: Callable[..., Tensor],
    network: nn.Module,
    options: dict[str, Any],
    x: Tensor,
    *args: Any,
    **conditions: Any,
) -> Tensor:
    """`forward(x, *args, **conditions)` inside the wrappers of `options`; they see `network` as class_obj."""
    wrappers = comfy.patcher_extension.get_all_wrappers(
        comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options
    )
    executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(forward, network, wrappers)
    # Wrappers may write into their latent, as EasyCache does in the steps it skips. In fp32 it is the very
    # tensor from which ComfyUI computes the picture afterwards.
    return executor.execute(x.clone(), *args, **conditions)

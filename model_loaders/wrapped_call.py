"""The door through which other packs' DIFFUSION_MODEL wrappers reach a network of this pack."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import comfy.patcher_extension


class WrappedCall(nn.Module):
    """Gives a network the call ComfyUI makes; a DIFFUSION_MODEL wrapper sees every evaluation.

    Stands before the plain network among the bases, whose own call differs on purpose.
    """

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor | None = None,
        control: object = None,
        transformer_options: dict[str, Any] | None = None,
        **conditions: Any,
    ) -> Tensor:
        """Velocity (B, C, H, W) at sigma = timestep (B) under `conditions`, inside the options' wrappers."""
        options = transformer_options or {}
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options
        )
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        # Wrappers may write into their latent, as EasyCache does in the steps it skips. In fp32 it is the
        # very tensor from which ComfyUI computes the picture afterwards.
        return executor.execute(x.clone(), timestep, context, control, options, **conditions)

    def _forward(self, *inputs: Any, **conditions: Any) -> Tensor:
        """The network's answer, without wrappers."""
        raise NotImplementedError

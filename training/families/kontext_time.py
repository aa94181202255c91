"""Telling diffusers' FLUX the exact time, as ComfyUI does."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def velocity_at(network: Any, inputs: dict[str, Any], **more: Any) -> Tensor:
    """The transformer's answer to `inputs`, whose `timestep` (B,) reaches its time embedding in fp32.

    diffusers multiplies the time by 1000 in the dtype of the features. In bf16 that leaves steps of 4, while
    the picture is noised with the exact share and ComfyUI embeds the exact time. Guidance stays as it is:
    ComfyUI rounds it in the same way.
    """
    timestep = 1000 * inputs["timestep"].float()

    def with_exact_time(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return timestep, *arguments[1:]

    handle = network.time_text_embed.register_forward_pre_hook(with_exact_time)
    try:
        return network(**inputs, **more, return_dict=False)[0]
    finally:
        handle.remove()

"""DreamOmni & OmniGen: pictures from words and pictures, as ComfyUI nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """ComfyUI's entry point; imports the nodes only when the host asks for them."""
    from .nodes import DreamOmniExtension

    return DreamOmniExtension()

"""The networks that can be trained; each module offers one `Family`."""

from __future__ import annotations

import importlib

from .base import Family

FAMILIES = {
    "dreamomni": "DreamOmniFamily",
    "kontext": "KontextFamily",
    "omnigen": "OmniGenFamily",
    "small_vae": "SmallVaeFamily",
    "vlm": "VlmFamily",
}


def load_family(name: str) -> Family:
    """The family called `name`; imports only its own module."""
    if name not in FAMILIES:
        raise ValueError(f"family is {name!r}; choose one of {', '.join(FAMILIES)}")
    module = importlib.import_module(f".{name}", __package__)
    return getattr(module, FAMILIES[name])()

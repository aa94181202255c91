"""The networks that can be trained; each module offers one `Family`."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from .base import Family

FAMILIES = {
    "kontext": "KontextFamily",
    "omnigen": "OmniGenFamily",
    "dreamomni": "DreamOmniFamily",
    "small_vae": "SmallVaeFamily",
    "vlm": "VlmFamily",
}
"""Module -> its class, in the order in which a node offers them."""


def load_family(name: str) -> Family:
    """The family called `name`; imports only its own module. ValueError names those there are."""
    if name not in FAMILIES:
        raise ValueError(f"family is {name!r}; choose one of {', '.join(FAMILIES)}")
    module = importlib.import_module(f".{name}", __package__)
    return getattr(module, FAMILIES[name])()


def families_where(holds: Callable[[Family], bool]) -> tuple[str, ...]:
    """Names of the families of which `holds` is true, in the order of `FAMILIES`.

    No family imports a heavy library before its network is loaded, so a node may ask when it is listed.
    """
    return tuple(name for name in FAMILIES if holds(load_family(name)))

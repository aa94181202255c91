"""Pictures that a VAE has encoded lately, so that another prompt or order does not encode them again."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor

MAX_BYTES = 256 * 2**20
"""Latents kept for each VAE, in system memory; one of 1024x1024 pixels takes 1 MB."""


class EncodeCache:
    """Latents by VAE and picture; they go with the VAE, and the ones used longest ago make room."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.latents: weakref.WeakKeyDictionary[Any, OrderedDict[Any, Tensor]] = weakref.WeakKeyDictionary()

    def get(self, vae: Any, picture: str, encode: Callable[[], Tensor]) -> Tensor:
        """The latent of a picture (by its content key), made by `encode` if it is not kept."""
        kept = self.latents.setdefault(vae, OrderedDict())
        # A VAE can be patched and set to another number type after it was loaded.
        state = getattr(getattr(vae, "patcher", None), "patches_uuid", None), getattr(vae, "vae_dtype", None)
        key = (picture, state)
        if key not in kept:
            kept[key] = encode()
        kept.move_to_end(key)
        latent = kept[key]
        while len(kept) > 1 and sum(part.nbytes for part in kept.values()) > self.max_bytes:
            kept.popitem(last=False)
        return latent


ENCODED = EncodeCache()

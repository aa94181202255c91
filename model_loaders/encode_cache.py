"""What a VAE or a VLM has encoded lately, so that another prompt, order or seed does not encode it again."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor

from comfy.model_management import intermediate_device

from ..dit.content import tensor_key
from ..vlm.encoder import DEFAULT_LAYER, VLMFeatures
from ..vlm.vision import PictureTokens, Pixels
from .reference_store import Same

if TYPE_CHECKING:
    from .vlm import LoadedVLM

MAX_BYTES = 256 * 2**20
"""Kept for each VAE and each VLM, in system memory: a latent of 1024x1024 pixels takes 1 MB, the hidden
states of such a picture 10 MB in bf16."""
T = TypeVar("T")


class OwnedCache(Generic[T]):
    """Results by owner and key; they go with the owner, and the ones used longest ago make room."""

    def __init__(self, num_bytes: Callable[[T], int], max_bytes: int = MAX_BYTES) -> None:
        self.num_bytes, self.max_bytes = num_bytes, max_bytes
        self.results: weakref.WeakKeyDictionary[Any, OrderedDict[Hashable, T]] = weakref.WeakKeyDictionary()
        self.computed = self.reused = 0

    def find(self, owner: Any, key: Hashable, compute: Callable[[], T]) -> T:
        """The owner's result under the key, made by `compute` if it is not kept."""
        kept = self.results.setdefault(owner, OrderedDict())
        if key in kept:
            self.reused += 1
        else:
            kept[key] = compute()
            self.computed += 1
        kept.move_to_end(key)
        result = kept[key]
        while len(kept) > 1 and self.size(owner) > self.max_bytes:
            kept.popitem(last=False)
        return result

    def size(self, owner: Any) -> int:
        """Bytes kept for an owner."""
        return sum(map(self.num_bytes, self.results.get(owner, {}).values()))


class EncodeCache(OwnedCache[Tensor]):
    """Latents by VAE and picture."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        super().__init__(lambda latent: latent.nbytes, max_bytes)

    def get(self, vae: Any, picture: str, encode: Callable[[], Tensor]) -> Tensor:
        """The latent of a picture (by its content key), made by `encode` if it is not kept."""
        # A VAE can be patched and set to another number type after it was loaded.
        state = getattr(getattr(vae, "patcher", None), "patches_uuid", None), getattr(vae, "vae_dtype", None)
        return self.find(vae, (picture, state), encode)


class FeatureCache(OwnedCache[VLMFeatures]):
    """Hidden states by VLM and request.

    The key holds the request as the network reads it: prompt, template, number and order of pictures and
    every pixel are all in its tensors, after tokenizer and picture processor.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        super().__init__(features_bytes, max_bytes)

    def get(self, vlm: LoadedVLM, request: dict[str, Tensor], layer: int = DEFAULT_LAYER) -> VLMFeatures:
        """The features of one request, evaluated if they are not kept."""
        key = (vlm.identity, weights_state(vlm.model_patcher), request_key(request), layer)
        return self.find(vlm, key, lambda: vlm.features_of(request, layer))


class PictureCache(OwnedCache[PictureTokens]):
    """Tokens of the vision tower by VLM and pictures, for other words about the same pictures."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        super().__init__(lambda picture: picture.tokens.nbytes, max_bytes)

    def get(self, vlm: LoadedVLM, pixels: Pixels, compute: Callable[[], PictureTokens]) -> PictureTokens:
        """The tokens of a request's pictures, made by `compute` if they are not kept."""

        def computed() -> PictureTokens:
            made = compute()
            return replace(made, tokens=made.tokens.to(intermediate_device()))

        key = (vlm.identity, weights_state(vlm.model_patcher), request_key(pixels))
        return self.find(vlm, key, computed)


def weights_state(patcher: Any) -> Hashable:
    """Changes with every patch of the weights and every replaced part of the network."""
    replaced = sorted(patcher.object_patches.items(), key=lambda item: item[0])
    return patcher.patches_uuid, tuple((name, Same(value)) for name, value in replaced)


def request_key(request: dict[str, Tensor]) -> Hashable:
    """The names of a request's tensors with their content keys."""
    return tuple((name, tensor_key(value)) for name, value in sorted(request.items()))


def features_bytes(features: VLMFeatures) -> int:
    """Memory of a request's features."""
    return sum(part.nbytes for part in (features.tokens, features.attention_mask, features.image_index))


ENCODED = EncodeCache()
FEATURES = FeatureCache()
PICTURES = PictureCache()

"""Pictures are encoded once, for every VAE apart, within a bound."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

pytestmark = pytest.mark.host


class Vae:
    vae_dtype = torch.float32


def filled(size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.uint8)


def test_the_same_picture_is_encoded_once_by_each_vae() -> None:
    from pack.model_loaders.encode_cache import EncodeCache

    cache, calls = EncodeCache(), []

    def encode() -> torch.Tensor:
        calls.append(1)
        return filled(4)

    one, other = Vae(), Vae()
    assert cache.get(one, "a", encode) is cache.get(one, "a", encode)
    cache.get(one, "b", encode)
    cache.get(other, "a", encode)
    assert len(calls) == 3
    one.vae_dtype = torch.bfloat16
    cache.get(one, "a", encode)
    assert len(calls) == 4


def test_the_ones_used_longest_ago_make_room() -> None:
    from pack.model_loaders.encode_cache import EncodeCache

    cache, vae, made = EncodeCache(max_bytes=250), Vae(), []

    def get(name: str, size: int = 100) -> None:
        cache.get(vae, name, lambda: made.append(name) or filled(size))

    for name in ("a", "b", "a", "c", "a", "b"):
        get(name)
    assert made == ["a", "b", "c", "b"]
    get("large", 1000)
    assert len(cache.results[vae]) == 1


def test_latents_go_with_their_vae() -> None:
    from pack.model_loaders.encode_cache import EncodeCache

    cache, vae = EncodeCache(), Vae()
    latent = weakref.ref(cache.get(vae, "a", lambda: filled(4)))
    del vae
    gc.collect()
    assert latent() is None


def test_an_error_keeps_nothing() -> None:
    from pack.model_loaders.encode_cache import EncodeCache

    cache, vae = EncodeCache(), Vae()

    def fail() -> torch.Tensor:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.get(vae, "a", fail)
    assert cache.get(vae, "a", lambda: filled(4)).numel() == 4


def test_the_node_reuses_pictures_across_prompts_and_orders() -> None:
    from comfy_stand_ins import CountingVAE
    from pack.dit.references import ResizeRule, Task, build_references
    from pack.model_loaders.reference_latents import encode_references

    vae = CountingVAE()
    one, two = torch.rand(1, 32, 48, 3), torch.rand(1, 16, 16, 3)

    def latents(*images: torch.Tensor) -> list[torch.Tensor]:
        slots = [*images, *[None] * (5 - len(images))]
        return encode_references(vae, build_references(Task.EDIT, ResizeRule.NONE, slots))

    first = latents(one, two)
    again = latents(two.clone(), one.clone())
    assert vae.calls == 2
    assert torch.equal(first[0], again[1]) and torch.equal(first[1], again[0])
    latents(one + 1e-3, two)
    assert vae.calls == 3

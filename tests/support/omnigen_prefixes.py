"""Prefixes of a tiny OmniGen, and how evaluations of it use a cache."""

from __future__ import annotations

import torch
from pack.dit.omnigen.blocks import torch_attention
from pack.dit.omnigen.cached import CacheUse, cached_velocity
from pack.dit.omnigen.prefix import make_prefix
from pack.dit.omnigen.prefix_cache import CacheSettings
from pack.dit.omnigen.prompt import tokenize_prompt
from tiny_omnigen import byte_tokenizer

NAMES = ("negative", "image_only", "positive")
ONE, TWO = "<img><|image_1|></img>", "<img><|image_2|></img>"


def encode(text, first):
    ids = byte_tokenizer().encode(text, add_special_tokens=False).ids
    return [1, *ids] if first else ids


def prefix_of(prompt, references):
    counts = [latent.shape[-2] * latent.shape[-1] // 4 for latent in references]
    return make_prefix(tokenize_prompt(prompt, counts, encode), references)


def use_of(cache, schedule=(), placement=lambda size: torch.device("cpu"), weights="w", **settings):
    return CacheUse(cache, CacheSettings(**settings), weights, lambda: schedule, placement)


def guided(network, branches, use):
    """denoised = x - sigma * velocity of the three branches, as DualCFGGuider combines them."""

    def model(x, sigma, **_):
        run = lambda prefix: (
            network.velocity(x, sigma, prefix)
            if use is None
            else cached_velocity(network, x, sigma, prefix, use, torch_attention)
        )
        negative, image_only, positive = (run(branches[name]) for name in NAMES)
        velocity = negative + 1.6 * (image_only - negative) + 2.5 * (positive - image_only)
        return x - sigma.view(-1, 1, 1, 1) * velocity

    return model

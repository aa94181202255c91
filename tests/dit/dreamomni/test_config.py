"""The config: what it refuses, and that its JSON loses nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from pack.dit.dreamomni.config import PRESETS, DreamOmniConfig
from pack.dit.dreamomni.latent import LatentSpec, pixel_latent


@pytest.mark.parametrize("name", PRESETS)
def test_json_loses_nothing(name: str) -> None:
    config = PRESETS[name]()
    assert DreamOmniConfig.from_mapping(json.loads(config.to_json())) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 100}, "width 100 cannot be divided among 16 heads"),
        ({"rope_axes": (16, 56, 54)}, "must be even and add up to the head's 128 channels"),
        ({"rope_axes": (15, 57, 56)}, "must be even"),
        ({"conv_width": 100}, "conv_width 100 is no multiple of 32 groups"),
        ({"groups": 0}, "groups must be at least 1, got 0"),
        ({"time_layers": 3}, "time_layers is 1 or 2, got 3"),
        ({"time_frequencies": 7}, "time_frequencies must be even"),
        ({"prediction": "noise"}, "prediction is 'noise'; use one of velocity, clean"),
        ({"position_encoding": "alibi"}, "position_encoding is 'alibi'"),
        ({"reference_positions": "uxo"}, r"use one of index\+offset, index, offset, none"),
        ({"modulation_form": "film"}, "modulation_form is 'film'"),
        ({"modulation_order": "relu"}, "modulation_order is 'relu'"),
        ({"downsample": "max"}, "downsample is 'max'"),
        ({"upsample": "max"}, "upsample is 'max'"),
        ({"conv_skip_merge": "mul"}, "conv_skip_merge is 'mul'"),
        ({"clean_sigma_floor": 0.0}, "clean_sigma_floor must lie between 0 and 1"),
        ({"position_encoding": "sincos", "width": 30, "heads": 1}, "sincos positions need a width"),
    ],
)
def test_bad_fields_are_named(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(DreamOmniConfig(), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "vqgan"}, "latent kind is 'vqgan'; use one of flux, sdxl, small, pixels"),
        ({"channels": 0}, "latent channels and downscale must be positive"),
        ({"kind": "pixels"}, "pixel blocks of 8 x 8 have 192 channels, the config says 16"),
        ({"scale": 0.0}, "latent scale must not be 0"),
        ({"rgb_factors": ((1.0, 0.0, 0.0),)}, "rgb_factors must be 16 rows of 3, got 1 rows"),
    ],
)
def test_bad_latents_are_named(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(LatentSpec(), **change)


def test_unknown_fields_are_listed() -> None:
    with pytest.raises(ValueError, match=r"does not know: depth, widht\. Update the pack"):
        DreamOmniConfig.from_mapping({"widht": 3, "depth": 2})
    with pytest.raises(ValueError, match=r"config\.json, latent has fields this version does not know: z"):
        DreamOmniConfig.from_mapping({"latent": {"z": 1}})


def test_preview_colours_of_pixel_blocks_are_their_mean() -> None:
    spec = pixel_latent(4)
    picture = torch.rand(1, 3, 8, 8) * 2 - 1
    latent = torch.nn.functional.pixel_unshuffle(picture, 4)
    shown = torch.einsum("bchw,cr->brhw", latent, torch.tensor(spec.rgb_factors))
    torch.testing.assert_close(shown, torch.nn.functional.avg_pool2d(picture, 4), rtol=0, atol=1e-6)


def test_a_token_covers_what_the_config_says() -> None:
    assert (PRESETS["paper-2.5b"]().token_pixels, PRESETS["tiny"]().token_pixels) == (16, 8)

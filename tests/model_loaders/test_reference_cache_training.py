"""A LoRA trained with exact references gives, through the cache, the velocity it was trained to give."""

from __future__ import annotations

import pytest
import torch
from host_models import diffusers_kontext, kontext_model, kontext_weights
from kontext_steps import GUIDANCE, TARGET, host_velocity, noise_like, references

pytestmark = pytest.mark.host

PLACES = [(1, 0), (2, 3), (3, 4)]
"""Index and first column of references that are 3, 1 and 5 tokens wide."""


def ids_of(latent: torch.Tensor, index: int, column: int) -> torch.Tensor:
    height, width = latent.shape[2] // 2, latent.shape[3] // 2
    return torch.tensor([[index, y, x + column] for y in range(height) for x in range(width)]).float()


def trained_velocity(
    network: torch.nn.Module,
    x: torch.Tensor,
    sigma: float,
    text: torch.Tensor,
    pooled: torch.Tensor,
    latents: list,
) -> torch.Tensor:
    from pack.training.families.kontext import packed, unpacked
    from pack.training.families.kontext_exact import exact_velocity

    target = torch.zeros(1, 1, *TARGET)
    inputs = {
        "hidden_states": packed(x),
        "encoder_hidden_states": text,
        "pooled_projections": pooled,
        "timestep": torch.tensor([sigma]),
        "img_ids": ids_of(target, 0, 0),
        "txt_ids": torch.zeros(text.shape[1], 3),
        "guidance": torch.tensor([GUIDANCE]),
    }
    ids = [ids_of(latent, *place) for latent, place in zip(latents, PLACES, strict=False)]
    with torch.no_grad():
        out = exact_velocity(network, inputs, [packed(latent) for latent in latents], ids, offload=False)
    return unpacked(out, *TARGET)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("with_lora", [False, True])
def test_cached_inference_is_what_was_trained(count: int, with_lora: bool) -> None:
    from pack.dit.positions import PositionScheme
    from pack.model_loaders.patches import attach_position_encoding
    from pack.model_loaders.reference_cache import attach_reference_cache
    from pack.model_loaders.reference_writing import CacheSettings
    from pack.training.adapters import inject_lora, lora_parameters, saved_lora
    from pack.training.config import AdapterConfig
    from pack.training.families.kontext import ATTENTION_TARGETS
    from pack.training.families.kontext_exact import install

    import comfy.sd

    weights = kontext_weights()
    model, network = kontext_model(weights), diffusers_kontext(weights)
    install(network)
    if with_lora:
        config = AdapterConfig(rank=4, alpha=8)
        inject_lora(network, config, list(ATTENTION_TARGETS), seed=1)
        for name, parameter in lora_parameters(network).items():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
        file = saved_lora(lora_parameters(network), "transformer.", config)
        model, _ = comfy.sd.load_lora_for_models(model, None, file, 1.0, 0.0)
    text, pooled = noise_like(1, 7, 24, seed=3), noise_like(1, 16, seed=4)
    x, latents = noise_like(1, 16, *TARGET, seed=5), references(count)
    model = attach_position_encoding(
        attach_reference_cache(model, CacheSettings()), PositionScheme.INDEX_OFFSET
    )
    raw = [model.model.process_latent_out(latent) for latent in latents]
    conditioning = [[text, {"pooled_output": pooled, "guidance": GUIDANCE, "reference_latents": raw}]]
    velocity = host_velocity(model, x, 0.7, conditioning)
    expected = trained_velocity(network, x, 0.7, text, pooled, latents)
    torch.testing.assert_close(velocity, expected, atol=2e-4, rtol=1e-4)

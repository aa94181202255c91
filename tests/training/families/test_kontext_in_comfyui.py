"""What is trained is what ComfyUI samples: our Kontext network from a file, and ComfyUI's own Flux class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from host_models import TINY, kontext_model, kontext_weights, write_diffusers, write_kontext
from pack.dit.flux_shape import FluxShape
from pack.dit.positions import PositionScheme
from pack.training.adapters import inject_lora, lora_parameters, saved_lora
from pack.training.config import AdapterConfig, MemoryConfig, ObjectiveConfig, RunConfig
from pack.training.families.base import CachedSample
from pack.training.families.kontext import KontextFamily
from torch import Tensor

pytestmark = pytest.mark.host

CPU = torch.device("cpu")
SIZES = ((4, 6), (8, 2), (6, 10))
"""Latent sizes of the references, all different."""
NARROW = FluxShape(
    in_channels=64, hidden_size=48, num_heads=3, axes_dim=(4, 6, 6), text_dim=24, pooled_dim=16,
    num_double=1, num_single=2,
)  # fmt: skip
RELEASED = FluxShape(
    in_channels=64, hidden_size=128, num_heads=1, axes_dim=(16, 56, 56), text_dim=24, pooled_dim=16,
    num_double=1, num_single=1,
)  # fmt: skip


def run_config(base: Path, scheme: str) -> RunConfig:
    return RunConfig(
        name="tiny",
        family="kontext",
        base={"transformer": str(base)},
        options={"positions": scheme},
        memory=MemoryConfig(precision="fp32"),
        adapter=AdapterConfig(rank=4, alpha=8),
        objective=ObjectiveConfig(guidance=3.5),
    )


def drawn_sample(references: int) -> CachedSample:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return CachedSample(
        id="a",
        task="edit",
        instruction="a",
        target=draw(16, 6, 8),
        references=tuple(draw(16, *size) for size in SIZES[:references]),
        prompt={"context": draw(7, TINY.text_dim), "pooled": draw(TINY.pooled_dim)},
        has_source=True,
    )


def comfyui_velocity(model: Any, item: CachedSample, noisy: Tensor, sigma: Tensor, scheme: str) -> Tensor:
    """ComfyUI's class: as it is for its own `index` ids, placed as inference places them for ours."""
    from pack.model_loaders.patches import position_wrapper

    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    network = model.model.diffusion_model
    references = [reference[None] for reference in item.references]
    arguments = (noisy, sigma, item.prompt["context"][None], item.prompt["pooled"][None])
    arguments += (torch.tensor([3.5]), references, None, {})
    with torch.inference_mode():
        if scheme == "index":
            return network(*arguments, ref_latents_method="index")
        return position_wrapper(network, PositionScheme(scheme))(network, *arguments)


def trained_lora(network: torch.nn.Module, config: RunConfig) -> dict[str, Tensor]:
    """A LoRA far from zero in the network, and its file."""
    assert config.adapter is not None
    inject_lora(network, config.adapter, KontextFamily().adapter_targets(config), seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in lora_parameters(network).values():
        parameter.data.normal_(std=0.1, generator=generator)
    return saved_lora(lora_parameters(network), KontextFamily.lora_prefix, config.adapter)


@pytest.mark.parametrize("shape", [TINY, NARROW, RELEASED], ids=["2x32", "3x16", "1x128"])
@pytest.mark.parametrize("write", [write_kontext, write_diffusers], ids=["bfl", "diffusers"])
@pytest.mark.parametrize("scheme", ["index", "index+offset"])
def test_the_network_that_is_trained_is_comfyuis(
    tmp_path: Path, shape: FluxShape, write: Any, scheme: str
) -> None:
    """Every head width, both layouts, three references of different sizes; with a LoRA and without."""
    import comfy.sd

    weights = kontext_weights(shape)
    family, config = KontextFamily(), run_config(write(tmp_path / "base.safetensors", weights), scheme)
    network = family.load_network(config, CPU)
    assert network.config.attention_head_dim == shape.head_dim
    assert tuple(network.config.axes_dims_rope) == shape.axes_dim
    item, sigma = drawn_sample(3), torch.tensor([0.7])
    noisy = torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(9))
    batch = family.collate([item], config, CPU, torch.float32)
    model = kontext_model(weights, shape)

    def equal_velocity() -> Tensor:
        with torch.no_grad():
            ours = family.predict_velocity(network, batch, noisy, sigma)
        theirs = comfyui_velocity(model, item, noisy, sigma, scheme)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        return ours

    before = equal_velocity()
    model, _ = comfy.sd.load_lora_for_models(model, None, trained_lora(network, config), 1.0, 0.0)
    assert (equal_velocity() - before).abs().max() > 1e-2


@pytest.mark.parametrize("references", [0, 1, 2])
def test_fewer_references_too(tmp_path: Path, references: int) -> None:
    weights = kontext_weights()
    config = run_config(write_kontext(tmp_path / "base.safetensors", weights), "index+offset")
    family, item, sigma = KontextFamily(), drawn_sample(references), torch.tensor([0.2])
    network = family.load_network(config, CPU)
    batch = family.collate([item], config, CPU, torch.float32)
    noisy = torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        ours = family.predict_velocity(network, batch, noisy, sigma)
    theirs = comfyui_velocity(kontext_model(weights), item, noisy, sigma, "index+offset")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

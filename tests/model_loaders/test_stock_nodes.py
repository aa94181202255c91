"""Stock nodes around OmniGen and DreamOmni: what they do keeps the picture whole, or is refused in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_dreamomni import VLM_WIDTH, toy_config, write_network
from tiny_flux import newer_settings
from tiny_omnigen import tiny_config, write_official

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def omnigen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The MODEL, a positive, a negative and the channels of its latents."""
    from pack.model_loaders.omnigen import load_omnigen

    folder = write_official(tmp_path_factory.mktemp("omnigen"), tiny_config())
    model, processor = load_omnigen(folder, "fp32")
    return model, *([[processor.tokenize(text, []).as_tensor(), {}]] for text in ("a cat", "ugly")), 4


@pytest.fixture(scope="module")
def dreamomni(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same four of DreamOmni."""
    from pack.model_loaders.dreamomni import load_patcher

    folder, config = tmp_path_factory.mktemp("dreamomni"), toy_config()
    model = load_patcher(write_network(folder / "toy", config), "fp32")
    tokens = torch.randn(2, 1, 5, VLM_WIDTH, generator=torch.Generator().manual_seed(1))
    extras = {"dreamomni_image_index": torch.zeros(1, 5, dtype=torch.long)}
    return model, [[tokens[0], extras]], [[tokens[1], extras]], config.latent.channels


@pytest.fixture(params=["omnigen", "dreamomni"])
def family(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def sampled(model: Any, positive: Any, negative: Any, channels: int, steps: int = 4) -> torch.Tensor:
    import nodes

    latent = {"samples": torch.zeros(1, channels, 8, 8)}
    with torch.inference_mode():
        return nodes.common_ksampler(model, 1, steps, 2.0, "euler", "simple", positive, negative, latent)[0][
            "samples"
        ]


def test_a_wrapper_that_writes_into_its_latent_spoils_nothing(family: Any) -> None:
    """ComfyUI works on with the tensor it gave the network, in fp32 the very same one."""
    from comfy.patcher_extension import WrappersMP

    def spoil(executor: Any, x: torch.Tensor, *args: Any, **conditions: Any) -> torch.Tensor:
        velocity = executor(x, *args, **conditions)
        x.zero_()
        return velocity

    model, *rest = family
    spoiled = model.clone()
    spoiled.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "spoil", spoil)
    assert torch.equal(sampled(spoiled, *rest), sampled(model, *rest))


def test_easycache_stays_near_the_plain_run(family: Any) -> None:
    from comfy_extras.nodes_easycache import EasyCacheNode

    model, *rest = family
    plain = sampled(model, *rest, steps=20)
    easy = sampled(EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False).args[0], *rest, steps=20)
    assert 0 < (easy - plain).norm() / plain.norm() < 0.1


def flux_controlnet() -> Any:
    """A real ControlNet for FLUX.1, tiny, which ComfyUI asks before the network."""
    import comfy.controlnet
    import comfy.ldm.flux.controlnet
    import comfy.ops

    network = comfy.ldm.flux.controlnet.ControlNetFlux(
        image_model="flux",
        in_channels=16,
        out_channels=16,
        patch_size=2,
        vec_in_dim=12,
        context_in_dim=24,
        hidden_size=32,
        mlp_ratio=4.0,
        num_heads=2,
        depth=1,
        depth_single_blocks=1,
        axes_dim=[4, 6, 6],
        theta=10000,
        qkv_bias=True,
        guidance_embed=True,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
        **newer_settings(),
    )
    cpu = torch.device("cpu")
    return comfy.controlnet.ControlNet(network, load_device=cpu, manual_cast_dtype=torch.float32)


def test_a_controlnet_is_refused_before_the_run(family: Any) -> None:
    import nodes

    model, positive, negative, channels = family
    pair = nodes.ControlNetApplyAdvanced().apply_controlnet(
        positive, negative, flux_controlnet(), torch.rand(1, 64, 64, 3), 1.0, 0.0, 1.0
    )
    with pytest.raises(ValueError, match=r"has no ControlNets: give .*the control picture as a reference"):
        sampled(model, *pair, channels)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_words_that_were_mixed_as_numbers_are_refused(omnigen: Any, strength: float) -> None:
    import nodes

    model, positive, negative, channels = omnigen
    (mixed,) = nodes.ConditioningAverage().addWeighted(negative, positive, strength)
    with pytest.raises(ValueError, match=r"was mixed, as 'Conditioning \(Average\)' does.*Use Conditioning"):
        sampled(model, mixed, negative, channels)

"""Kontext training against diffusers + peft, ComfyUI-independent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from pack.training.adapters import inject_lora, lora_off, lora_parameters
from pack.training.config import AdapterConfig, MemoryConfig, ObjectiveConfig, RunConfig
from pack.training.families.base import CachedSample
from pack.training.families.kontext import ATTENTION_TARGETS, KontextFamily, packed, unpacked
from pack.training.families.kontext_files import base_tensors, converted, network_arguments
from pack.training.recompute import recompute_blocks
from peft import LoraConfig
from safetensors.torch import save_file

from tests.training.tiny_flux import SHAPE, saved_flux, tiny_flux

CPU = torch.device("cpu")


def run_config(path: Path, **changes: object) -> RunConfig:
    return RunConfig(
        name="tiny",
        family="kontext",
        base={"transformer": str(path)},
        memory=MemoryConfig(precision="fp32", **changes),
        adapter=AdapterConfig(rank=4, alpha=4),
        objective=ObjectiveConfig(guidance=2.5),
    )


def sample(
    name: str = "a", seed: int = 0, references: tuple[tuple[int, int], ...] = ((4, 6), (6, 4))
) -> CachedSample:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return CachedSample(
        id=name,
        task="edit",
        instruction=name,
        target=draw(16, 8, 6),
        references=tuple(draw(16, *size) for size in references),
        prompt={"context": draw(5, 16), "pooled": draw(8)},
        has_source=True,
    )


def reference_velocity(
    network: FluxTransformer2DModel, item: CachedSample, noisy: torch.Tensor, sigma: float
):
    """diffusers called by hand: ids written out, tokens packed by its own pipeline."""
    from diffusers import FluxKontextPipeline as Pipeline

    tokens = [Pipeline._pack_latents(noisy[None], 1, *noisy.shape)]
    ids = [[(0, y, x) for y in range(noisy.shape[1] // 2) for x in range(noisy.shape[2] // 2)]]
    column = 0
    for n, reference in enumerate(item.references, start=1):
        height, width = reference.shape[1] // 2, reference.shape[2] // 2
        tokens.append(Pipeline._pack_latents(reference[None], 1, *reference.shape))
        ids.append([(n, y, x + column) for y in range(height) for x in range(width)])
        column += width
    answer = network(
        hidden_states=torch.cat(tokens, dim=1),
        encoder_hidden_states=item.prompt["context"][None],
        pooled_projections=item.prompt["pooled"][None],
        timestep=torch.tensor([sigma]),
        img_ids=torch.tensor([row for part in ids for row in part]).float(),
        txt_ids=torch.zeros(5, 3),
        guidance=torch.tensor([2.5]),
        return_dict=False,
    )[0][:, : tokens[0].shape[1]]
    return Pipeline._unpack_latents(answer, noisy.shape[1] * 8, noisy.shape[2] * 8, 8)[0]


def test_packing_is_the_pipelines() -> None:
    from diffusers import FluxKontextPipeline as Pipeline

    latent = torch.randn(2, 16, 4, 6)
    torch.testing.assert_close(packed(latent), Pipeline._pack_latents(latent, 2, 16, 4, 6), rtol=0, atol=0)
    torch.testing.assert_close(unpacked(packed(latent), 4, 6), latent, rtol=0, atol=0)


def test_one_steps_gradients_equal_diffusers_and_peft_with_two_references_of_different_sizes(
    tmp_path: Path,
) -> None:
    plain = tiny_flux()
    family, config = KontextFamily(), run_config(saved_flux(tmp_path, plain))
    network = family.load_network(config, CPU)
    inject_lora(network, config.adapter, family.adapter_targets(config), seed=1)
    ours = lora_parameters(network)

    plain.requires_grad_(False)
    plain.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(ATTENTION_TARGETS)))
    theirs = {n.replace(".default.", "."): p for n, p in plain.named_parameters() if "lora_" in n}
    assert ours.keys() == theirs.keys()
    torch.manual_seed(2)
    for name, parameter in ours.items():
        parameter.data = torch.randn_like(parameter) * 0.1
        theirs[name].data = parameter.data.clone()

    item = sample()
    noise, sigma = torch.randn(item.target.shape), 0.6
    batch = family.collate([item], config, CPU, torch.float32)
    loss = family.loss(network, batch, noise[None], torch.tensor([sigma]), config).sum()
    loss.backward()
    noisy = (1 - sigma) * item.target + sigma * noise
    expected = (reference_velocity(plain, item, noisy, sigma) - (noise - item.target)).square().mean()
    expected.backward()

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for name, parameter in ours.items():
        assert theirs[name].grad.abs().max() > 0
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6)


def test_a_batch_of_two_equals_its_samples_one_by_one(tmp_path: Path) -> None:
    family, config = KontextFamily(), run_config(saved_flux(tmp_path, tiny_flux()))
    network = family.load_network(config, CPU)
    samples, noise = [sample("a", 1), sample("b", 2)], torch.randn(2, 16, 8, 6)
    sigmas = torch.tensor([0.2, 0.9])
    both = family.loss(network, family.collate(samples, config, CPU, torch.float32), noise, sigmas, config)
    each = [
        family.loss(
            network,
            family.collate([one], config, CPU, torch.float32),
            noise[i : i + 1],
            sigmas[i : i + 1],
            config,
        )
        for i, one in enumerate(samples)
    ]
    torch.testing.assert_close(both, torch.cat(each), rtol=1e-5, atol=1e-6)


def test_the_lora_off_is_the_base_bit_for_bit(tmp_path: Path) -> None:
    family, config = KontextFamily(), run_config(saved_flux(tmp_path, tiny_flux()))
    network = family.load_network(config, CPU)
    batch = family.collate([sample()], config, CPU, torch.float32)
    noisy, sigmas = torch.randn(1, 16, 8, 6), torch.tensor([0.5])
    before = family.predict_velocity(network, batch, noisy, sigmas)
    inject_lora(network, config.adapter, family.adapter_targets(config), seed=1)
    assert torch.equal(family.predict_velocity(network, batch, noisy, sigmas), before)
    for parameter in lora_parameters(network).values():
        parameter.data = torch.randn_like(parameter)
    assert not torch.equal(family.predict_velocity(network, batch, noisy, sigmas), before)
    with lora_off(network):
        assert torch.equal(family.predict_velocity(network, batch, noisy, sigmas), before)
    assert all(parameter.requires_grad for parameter in lora_parameters(network).values())


def bfl_rows(width: int = 3072) -> dict[str, torch.Tensor]:
    """A BFL checkpoint of real height and one column: names and rows are all that conversion touches."""
    rows = {
        "img_in": width, "txt_in": width, "final_layer.linear": 64,
        "final_layer.adaLN_modulation.1": 2 * width,
        "time_in.in_layer": width, "time_in.out_layer": width, "vector_in.in_layer": width,
        "vector_in.out_layer": width, "guidance_in.in_layer": width, "guidance_in.out_layer": width,
    }  # fmt: skip
    for stream in ("img", "txt"):
        block = f"double_blocks.0.{stream}_"
        rows |= {f"{block}mod.lin": 6 * width, f"{block}attn.qkv": 3 * width, f"{block}attn.proj": width}
        rows |= {f"{block}mlp.0": 4 * width, f"{block}mlp.2": width}
    single = "single_blocks.0."
    rows |= {f"{single}linear1": 7 * width, f"{single}linear2": width, f"{single}modulation.lin": 3 * width}
    tensors = {}
    for name, height in rows.items():
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = torch.randn(height, 1), torch.randn(height)
    for norm in ("double_blocks.0.img_attn", "double_blocks.0.txt_attn", "single_blocks.0"):
        for part in ("query", "key"):
            tensors[f"{norm}.norm.{part}_norm.scale"] = torch.randn(128)
    return tensors


def test_names_and_rows_are_converted_as_diffusers_does() -> None:
    checkpoint = bfl_rows()
    ours = dict(pair for name, tensor in checkpoint.items() for pair in converted(name, tensor))
    theirs = convert_flux_transformer_checkpoint_to_diffusers(dict(checkpoint))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def to_bfl(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse conversion at any width, found by converting numbered rows."""
    width = state["x_embedder.weight"].shape[0]
    rows = {name: tensor.shape[0] for name, tensor in bfl_rows(width).items()}
    layers = {}
    for name, height in rows.items():
        numbered = torch.arange(height).reshape(-1, 1) if name.endswith("weight") else torch.arange(height)
        order = torch.cat([r.flatten() for _, r in converted(name, numbered)])
        source = torch.cat([state[target] for target, _ in converted(name, numbered)])
        layers[name] = source[torch.argsort(order)].contiguous()
    return layers


@pytest.mark.parametrize("layout", ["bfl", "checkpoint", "model", "saved", "fp8", "fp8 scaled"])
def test_every_layout_loads_to_the_same_network(tmp_path: Path, layout: str) -> None:
    network = tiny_flux()
    state = to_bfl(network.state_dict())
    tolerance = 0.0
    if layout == "checkpoint":
        state = {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}
        state["vae.decoder.conv_in.weight"] = torch.zeros(1)
    if layout == "model":
        state = {f"model.{name}": tensor for name, tensor in state.items()}
    if layout == "saved":  # by newer ComfyUI
        state = {name.replace("_norm.scale", "_norm.weight"): tensor for name, tensor in state.items()}
        state = {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}
    if layout == "fp8":
        matrices = [name for name, tensor in state.items() if tensor.ndim == 2]
        state |= {name: state[name].to(torch.float8_e4m3fn) for name in matrices}
        tolerance = 0.02
    if layout == "fp8 scaled":
        for name in [name for name, tensor in state.items() if tensor.ndim == 2]:
            scale = state[name].abs().max() / 448
            state[name] = (state[name] / scale).to(torch.float8_e4m3fn)
            state[name.removesuffix("weight") + "scale_weight"] = scale.reshape(())
        state["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
        tolerance = 0.02
    path = tmp_path / "base.safetensors"
    save_file(state, path)
    assert network_arguments(path) == {**SHAPE, "axes_dims_rope": (16, 56, 56)}
    loaded = KontextFamily().load_network(run_config(path), CPU)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0.07, atol=tolerance)
        if not tolerance:
            assert torch.equal(loaded.state_dict()[name], tensor)


def test_files_that_are_no_base_say_what_to_choose(tmp_path: Path) -> None:
    family = KontextFamily()
    with pytest.raises(FileNotFoundError, match="no base model"):
        family.load_network(run_config(tmp_path / "gone.safetensors"), CPU)
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match=r"no FLUX\.1 transformer in BFL's or diffusers' layout"):
        family.load_network(run_config(other), CPU)
    gguf = tmp_path / "base.gguf"
    gguf.touch()
    with pytest.raises(ValueError, match="GGUF works for sampling only"):
        family.load_network(run_config(gguf), CPU)
    state = tiny_flux().state_dict()
    del state["proj_out.bias"]
    save_file(state, other)
    with pytest.raises(ValueError, match=r"1 tensors are missing \(proj_out\.bias\)"):
        family.load_network(run_config(other), CPU)
    assert sorted(name for name, _ in base_tensors(other)) == sorted(state)


def lora_gradient(base: Path, precision: str, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of one LoRA and the velocity, both flat, on a base held in `precision`."""
    family = KontextFamily()
    config = RunConfig(
        name="x", family="kontext", base={"transformer": str(base)}, memory=MemoryConfig(precision=precision)
    )
    network = family.load_network(config, CPU)
    inject_lora(network, AdapterConfig(rank=4, alpha=4), ["attn.to_q", "attn.to_v"], seed=1)
    torch.manual_seed(3)
    for parameter in lora_parameters(network).values():
        parameter.data = torch.randn_like(parameter) * 0.05
    batch = family.collate([sample()], config, CPU, torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"):
        noise, sigmas = torch.ones(1, 16, 8, 6), torch.tensor([sigma])
        loss = family.loss(network, batch, noise, sigmas, config).sum()
        with torch.no_grad():
            velocity = family.predict_velocity(network, batch, noise, sigmas)
    loss.backward()
    assert all(p.dtype == torch.float32 for p in lora_parameters(network).values())
    gradient = torch.cat([p.grad.flatten() for p in lora_parameters(network).values()])
    return gradient, velocity.float().flatten()


@pytest.mark.parametrize("sigma", [0.5, 0.9312])
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_a_smaller_base_gives_nearly_the_same(tmp_path: Path, precision: str, sigma: float) -> None:
    path = saved_flux(tmp_path, tiny_flux())
    small, full = lora_gradient(path, precision, sigma), lora_gradient(path, "fp32", sigma)
    for name, one, other in zip(("gradient", "velocity"), small, full, strict=True):
        error = (one - other).norm() / other.norm()
        assert error < (0.03 if precision != "fp8" else 0.06), name


@pytest.mark.parametrize("attention", ["full", "exact"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_network_is_told_the_exact_time(tmp_path: Path, precision: str, attention: str) -> None:
    family = KontextFamily()
    config = run_config(saved_flux(tmp_path, tiny_flux()), reference_attention=attention)
    network = family.load_network(config, CPU)
    inject_lora(network, config.adapter, family.adapter_targets(config), seed=1)
    recompute_blocks(network, family.block_classes(network), offload=False)
    told: list[list[float]] = []
    network.time_text_embed.time_proj.register_forward_pre_hook(lambda _, args: told.append(args[0].tolist()))
    batch = family.collate([sample("a", 1), sample("b", 2)], config, CPU, torch.float32)
    sigmas = torch.tensor([0.9312, 0.1043])
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        family.loss(network, batch, torch.ones(2, 16, 8, 6), sigmas, config).sum().backward()
    time, guidance = told[-2:]
    assert time == (1000 * sigmas).tolist()
    # ComfyUI rounds guidance to the dtype of the network, before and after it is multiplied.
    assert guidance == [2496.0 if precision == "bf16" else 2500.0] * 2
    assert not network.time_text_embed._forward_pre_hooks, "nothing stays behind"

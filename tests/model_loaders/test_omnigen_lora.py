"""LoRAs of the authors, of diffusers and of ComfyUI change the same weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_omnigen import tiny_config, write_official

pytestmark = pytest.mark.host

LAYER = "layers.1.self_attn"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from pack.model_loaders.omnigen import load_omnigen

    return load_omnigen(write_official(tmp_path_factory.mktemp("omnigen"), tiny_config()), "fp32")[0]


def patched_weight(model, name, strength=0.8):
    from pack.nodes.omnigen_model import OmniGenLoRA

    patcher = OmniGenLoRA.execute(model, name, strength).args[0]
    key = f"diffusion_model.llm.{LAYER}.qkv_proj.weight"
    patcher.patch_model()
    weight = patcher.model.state_dict()[key].clone()
    patcher.unpatch_model()
    return weight


def matrices(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 32, generator=generator), torch.randn(96, 2, generator=generator)


def test_every_layout_gives_the_same_weight(model, models_dir):
    down, up = matrices()
    base = model.model.state_dict()[f"diffusion_model.llm.{LAYER}.qkv_proj.weight"].clone()
    loras = models_dir / "loras"
    peft = f"base_model.model.llm.{LAYER}.qkv_proj"
    (loras / "peft").mkdir()
    save_file(
        {f"{peft}.lora_A.weight": down, f"{peft}.lora_B.weight": up}, loras / "peft/adapter_model.safetensors"
    )
    (loras / "peft/adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    own = f"diffusion_model.llm.{LAYER}.qkv_proj"
    save_file(
        {f"{own}.lora_A.weight": down, f"{own}.lora_B.weight": up, f"{own}.alpha": torch.tensor(4.0)},
        loras / "comfy.safetensors",
    )
    split = {}
    for part, rows in zip("qkv", up.chunk(3), strict=True):
        split[f"transformer.{LAYER}.to_{part}.lora_A.weight"] = down.clone()
        split[f"transformer.{LAYER}.to_{part}.lora_B.weight"] = rows.contiguous()
        split[f"transformer.{LAYER}.to_{part}.alpha"] = torch.tensor(4.0)
    save_file(split, loras / "diffusers.safetensors")
    expected = base + 0.8 * 2 * up @ down
    for name in ("peft/adapter_model.safetensors", "comfy.safetensors", "diffusers.safetensors"):
        torch.testing.assert_close(patched_weight(model, name), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.model.state_dict()[f"diffusion_model.llm.{LAYER}.qkv_proj.weight"], base)


def test_a_lora_of_another_model_or_size(model, models_dir):
    from pack.nodes.omnigen_model import OmniGenLoRA

    flux = {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(2, 8)}
    save_file(flux, models_dir / "loras" / "flux.safetensors")
    with pytest.raises(ValueError, match=r"flux\.safetensors is for another model.*OmniGenModel"):
        OmniGenLoRA.execute(model, "flux.safetensors", 1.0)
    name = f"diffusion_model.llm.{LAYER}.qkv_proj"
    big = {f"{name}.lora_A.weight": torch.zeros(2, 64), f"{name}.lora_B.weight": torch.zeros(192, 2)}
    save_file(big, models_dir / "loras" / "big.safetensors")
    with pytest.raises(ValueError, match="is 192x64, in this MODEL, which is OmniGenModel, it is 96x32"):
        OmniGenLoRA.execute(model, "big.safetensors", 1.0)


def test_output_projection_of_both_layouts(model):
    from pack.model_loaders.omnigen_lora import omnigen_places

    places = omnigen_places(model.model)
    weight = "diffusion_model.llm.layers.0.self_attn.o_proj.weight"
    assert places["llm.layers.0.self_attn.o_proj"] == weight
    assert places["transformer.layers.0.self_attn.to_out.0"] == weight
    assert places["layers.0.mlp.gate_up_proj"] == "diffusion_model.llm.layers.0.mlp.gate_up_proj.weight"
    assert omnigen_places(torch.nn.Linear(1, 1)) == {}

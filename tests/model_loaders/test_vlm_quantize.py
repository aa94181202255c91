"""Quantised VLMs stay within stated bounds of the full one, and partly offloaded ones equal them."""

from __future__ import annotations

import sys

import pytest
import torch

import comfy.model_management as mm

pytestmark = pytest.mark.host

PICTURE = torch.rand(1, 84, 112, 3, generator=torch.Generator().manual_seed(0))
PROMPT = "a red bag on a chair"
# Relative error (Frobenius) of one layer, and of the hidden states behind a whole tiny random model.
BOUNDS = {"int8": (0.01, 0.04), "fp8": (0.04, 0.12), "nf4": (0.12, 0.45)}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.fixture(scope="module")
def full(vlm_folder):
    from pack.model_loaders.vlm import load_vlm

    return load_vlm(vlm_folder("qwen2_5_vl"), "fp32").hidden_states(PROMPT, [PICTURE]).tokens


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("bias", [True, False])
def test_one_layer_is_within_its_bound(precision: str, bias: bool) -> None:
    from pack.model_loaders.vlm_quantize import quantized_layer

    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 128, bias=bias)
    with torch.no_grad():
        layer.weight[3] = 0
    tokens = torch.randn(5, 256)
    small = quantized_layer(layer, precision, torch.device("cpu"))
    with torch.no_grad():
        assert 0 < relative(small(tokens), layer(tokens)) < BOUNDS[precision][0]
    if not bias:
        assert small(tokens)[:, 3].abs().max() == 0


@pytest.mark.parametrize("precision", BOUNDS)
def test_a_quantised_model_is_within_its_bound_and_smaller(vlm_folder, full, precision: str) -> None:
    from pack.model_loaders.vlm import load_vlm

    vlm = load_vlm(vlm_folder("qwen2_5_vl"), precision)
    assert relative(vlm.hidden_states(PROMPT, [PICTURE]).tokens, full) < BOUNDS[precision][1]
    stored = {parameter.dtype for parameter in vlm.network.model.language_model.layers.parameters()}
    assert {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "nf4": torch.uint8}[precision] in stored
    assert vlm.network.lm_head.weight.dtype == torch.bfloat16
    layer = vlm.network.model.language_model.layers[0].mlp.up_proj
    values = layer.in_features * layer.out_features
    assert layer.weight.nbytes == (values // 2 if precision == "nf4" else values)
    assert vlm.generate_text(PROMPT, [PICTURE], 2).num_tokens == 2


@pytest.mark.parametrize("precision", BOUNDS)
def test_partly_offloaded_quantised_models_give_the_same_numbers(vlm_folder, precision: str) -> None:
    from pack.model_loaders.vlm import load_vlm

    vlm = load_vlm(vlm_folder("qwen2_5_vl"), precision)
    request = vlm.make_ready(
        dict(vlm.processor(text=["<|im_start|>user\na red bag"], return_tensors="pt")), 0
    )
    with torch.no_grad():
        wholly = vlm.network(**request).logits
        vlm.model_patcher.detach()
        vlm.model_patcher.patch_model(device_to=mm.get_torch_device(), lowvram_model_memory=60000)
        assert vlm.model_patcher.loaded_size() <= 60000
        partly = vlm.network(**request).logits
    vlm.model_patcher.detach()
    torch.testing.assert_close(partly, wholly, atol=0, rtol=0)


def test_nf4_without_bitsandbytes_says_what_to_install(vlm_folder, monkeypatch) -> None:
    from pack.model_loaders.vlm import load_vlm

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"nf4 needs the package bitsandbytes.*pip install bitsandbytes"):
        load_vlm(vlm_folder("qwen2_5_vl"), "nf4")

"""Official and diffusers layouts turn into each other bit for bit."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch
from pack.dit.omnigen.network import OmniGenNetwork
from pack.dit.omnigen.state_dict import diffusers_name, is_diffusers, to_official
from tiny_omnigen import diffusers_model, tiny_config
from torch import Tensor

FUSED = re.compile(r"(.*self_attn\.)qkv_proj\.(.*)")


def to_diffusers(weights: Mapping[str, Tensor], num_heads: int, num_kv_heads: int) -> dict[str, Tensor]:
    """Official tensors under diffusers' names, the fused qkv cut by heads; nothing is rounded."""
    diffusers = {}
    for name, tensor in weights.items():
        match = FUSED.match(name)
        if not match:
            diffusers[diffusers_name(name)] = tensor
            continue
        head = tensor.shape[0] // (num_heads + 2 * num_kv_heads)
        sizes = [num_heads * head, num_kv_heads * head, num_kv_heads * head]
        for part, piece in zip("qkv", tensor.split(sizes), strict=True):
            diffusers[f"{match[1].removeprefix('llm.')}to_{part}.{match[2]}"] = piece.contiguous()
    return diffusers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_round_trip_is_bit_exact(dtype):
    first = {name: tensor.to(dtype) for name, tensor in diffusers_model(tiny_config()).state_dict().items()}
    official = to_official(first)
    again = to_diffusers(official, 4, 4)
    assert set(again) == set(first)
    assert all(torch.equal(again[name].view(torch.uint8), first[name].view(torch.uint8)) for name in first)
    back = to_official(again)
    assert set(back) == set(official)
    assert all(torch.equal(back[name].view(torch.uint8), official[name].view(torch.uint8)) for name in back)


def test_names_are_the_released_ones():
    names = set(to_official(diffusers_model(tiny_config()).state_dict())) - {"pos_embed"}
    assert names == set(OmniGenNetwork(tiny_config()).state_dict())
    assert {"x_embedder.proj.weight", "llm.layers.1.self_attn.qkv_proj.weight", "llm.norm.weight"} <= names
    assert {"final_layer.adaLN_modulation.1.bias", "time_token.mlp.2.weight"} <= names


def test_layouts_are_told_apart_and_grouped_keys_cut():
    diffusers = diffusers_model(tiny_config()).state_dict()
    assert is_diffusers(diffusers)
    assert not is_diffusers(to_official(diffusers))
    grouped = to_diffusers({"llm.layers.0.self_attn.qkv_proj.weight": torch.zeros(64, 32)}, 4, 2)
    assert {name: tensor.shape[0] for name, tensor in grouped.items()} == {
        "layers.0.self_attn.to_q.weight": 32,
        "layers.0.self_attn.to_k.weight": 16,
        "layers.0.self_attn.to_v.weight": 16,
    }


def test_a_missing_part_is_named():
    with pytest.raises(ValueError, match=r"qkv_proj.weight: the file has no to_k; is a shard missing"):
        to_official({"layers.0.self_attn.to_q.weight": torch.zeros(8, 8)})


@pytest.mark.parametrize("end", [".scale_weight", ".weight_scale"])
def test_scales_of_rows_and_input_scales_are_read(end: str) -> None:
    from pack.dit.omnigen.folder import unscaled

    square = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    scales = {f"a{end}": torch.tensor([2.0, 10.0]), f"b{end}": torch.tensor(0.5)}
    unread = {"a.scale_input": torch.ones(()), "b.input_scale": torch.ones(1)}
    read = unscaled({"a.weight": square, "b.weight": square, "b.bias": square[0], **scales, **unread})
    assert read.keys() == {"a.weight", "b.weight", "b.bias"}
    assert read["a.weight"].tolist() == [[2, 4], [30, 40]]
    assert read["b.weight"].tolist() == [[0.5, 1], [1.5, 2]]
    with pytest.raises(ValueError, match=r"a\.weight of the shape \(2, 2\) has a scale of the shape \(4,\)"):
        unscaled({"a.weight": square, f"a{end}": torch.ones(4)})

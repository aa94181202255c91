"""FLUX.1's two layouts by name, and the names a newer ComfyUI writes."""

from __future__ import annotations

from pack.dit.flux_names import bare_names, diffusers_sources, flux_prefix, released_name


def test_every_weight_has_its_sources_in_the_order_of_their_rows() -> None:
    sources = diffusers_sources(19, 38)
    assert len(sources) == 780
    assert len({source for parts in sources.values() for source in parts}) == 1160
    assert sources["img_in.bias"] == ("x_embedder.bias",)
    assert sources["double_blocks.18.txt_attn.qkv.weight"] == (
        "transformer_blocks.18.attn.add_q_proj.weight",
        "transformer_blocks.18.attn.add_k_proj.weight",
        "transformer_blocks.18.attn.add_v_proj.weight",
    )
    assert sources["single_blocks.37.linear1.bias"] == (
        "single_transformer_blocks.37.attn.to_q.bias",
        "single_transformer_blocks.37.attn.to_k.bias",
        "single_transformer_blocks.37.attn.to_v.bias",
        "single_transformer_blocks.37.proj_mlp.bias",
    )
    assert sources["single_blocks.0.norm.key_norm.scale"] == (
        "single_transformer_blocks.0.attn.norm_k.weight",
    )


def test_names_of_newer_comfyui_become_the_released_ones() -> None:
    changed = "double_blocks.0.img_attn.norm.query_norm.weight", "single_blocks.7.norm.key_norm.weight"
    assert [released_name(name) for name in changed] == [
        "double_blocks.0.img_attn.norm.query_norm.scale",
        "single_blocks.7.norm.key_norm.scale",
    ]
    others = [*diffusers_sources(1, 1), *(s for parts in diffusers_sources(1, 1).values() for s in parts)]
    assert [released_name(name) for name in others] == others


def test_bare_names_drop_the_prefix_and_what_lies_beside_the_network() -> None:
    norm = "double_blocks.0.img_attn.norm.query_norm"
    stored = [
        f"model.diffusion_model.{norm}.weight",
        "model.diffusion_model.img_in.weight",
        "vae.conv_in.bias",
    ]
    prefix = flux_prefix(stored)
    assert prefix == "model.diffusion_model."
    assert bare_names(stored, prefix) == {f"{norm}.scale": stored[0], "img_in.weight": stored[1]}

"""The shape of a FLUX.1 network from the shapes of its weights."""

from __future__ import annotations

import pytest
from pack.dit.flux_shape import FluxShape, count_blocks, flux_shape, rotary_axes

BFL = {
    "img_in.weight": (3072, 64),
    "txt_in.weight": (3072, 4096),
    "vector_in.in_layer.weight": (3072, 768),
    "guidance_in.in_layer.weight": (3072, 256),
    "double_blocks.0.img_attn.norm.query_norm.scale": (128,),
    "double_blocks.0.img_mlp.0.weight": (12288, 3072),
    "final_layer.linear.weight": (64, 3072),
    **{f"double_blocks.{n}.img_attn.qkv.weight": (9216, 3072) for n in range(19)},
    **{f"single_blocks.{n}.linear2.weight": (3072, 15360) for n in range(38)},
}
DIFFUSERS = {
    "x_embedder.weight": (3072, 64),
    "context_embedder.weight": (3072, 4096),
    "time_text_embed.text_embedder.linear_1.weight": (3072, 768),
    "time_text_embed.guidance_embedder.linear_1.weight": (3072, 256),
    "transformer_blocks.0.attn.norm_q.weight": (128,),
    "transformer_blocks.0.ff.net.0.proj.weight": (12288, 3072),
    "proj_out.weight": (64, 3072),
    **{f"transformer_blocks.{n}.attn.to_q.weight": (3072, 3072) for n in range(19)},
    **{f"single_transformer_blocks.{n}.attn.to_q.weight": (3072, 3072) for n in range(38)},
}


@pytest.mark.parametrize("shapes", [BFL, DIFFUSERS])
def test_flux_1_in_both_layouts(shapes: dict) -> None:
    shape = flux_shape(shapes)
    assert shape == FluxShape()
    assert (shape.head_dim, shape.latent_channels) == (128, 16)


@pytest.mark.parametrize(
    ("head_dim", "axes"), [(128, (16, 56, 56)), (64, (8, 28, 28)), (32, (4, 14, 14)), (16, (4, 6, 6))]
)
def test_axes_follow_the_head(head_dim: int, axes: tuple[int, int, int]) -> None:
    assert rotary_axes(head_dim) == axes


def test_a_head_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match="heads of 7 channels"):
        rotary_axes(7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance_in.in_layer.weight": None}, "no guidance embedding: FLUX.1 schnell"),
        ({"txt_in.weight": None}, "weights of FLUX.1 are missing: txt_in.weight"),
        ({"img_in.weight": (3072, 384)}, "reads 384 packed channels and writes 64: FLUX.1 fill"),
        ({"double_blocks.0.img_mlp.0.weight": (9216, 3072)}, "MLP 9216 do not fit"),
        ({"double_blocks.0.img_attn.norm.query_norm.scale": (100,)}, "head size 100"),
        ({"double_blocks.3.img_attn.qkv.weight": None}, "double_blocks 3 are missing"),
    ],
)
def test_what_is_not_kontext_is_named(change: dict, message: str) -> None:
    shapes = {name: shape for name, shape in {**BFL, **change}.items() if shape is not None}
    with pytest.raises(ValueError, match=message):
        flux_shape(shapes)


def test_heads_and_axes_must_fill_the_hidden_size() -> None:
    with pytest.raises(ValueError, match=r"2 heads with rotary axes \(16, 56, 56\)"):
        FluxShape(num_heads=2)


def test_blocks_are_counted_by_number_not_by_text() -> None:
    assert count_blocks([f"single_blocks.{n}.x" for n in range(12)], "single_blocks") == 12
    assert count_blocks([], "single_blocks") == 0

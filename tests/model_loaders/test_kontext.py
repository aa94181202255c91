"""Kontext files of every layout load as the same network; everything else is refused by name."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from host_models import (
    diffusers_weights,
    kontext_config,
    kontext_model,
    kontext_weights,
    rounded_to_fp8,
    scaled_to_fp8,
    unscaled,
    write_diffusers,
    write_kontext,
    write_saved,
    write_sharded,
)
from safetensors.torch import save_file
from torch import Tensor

pytestmark = pytest.mark.host

# Weights kept in fp8 are computed with in bfloat16.
BF16_ROUNDING = 0.03


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return kontext_weights()


@pytest.fixture
def folder(models_dir: Path) -> Path:
    return models_dir / "diffusion_models"


def load(name: str, weight_dtype: str = "default") -> Any:
    from pack.nodes.kontext import LoadKontext

    return LoadKontext.execute(name, weight_dtype).args[0]


def velocity(model: Any) -> Tensor:
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    generator = torch.Generator().manual_seed(5)
    with torch.inference_mode():
        return model.model.apply_model(
            torch.randn(1, 16, 4, 6, generator=generator),
            torch.tensor([0.6]),
            c_crossattn=torch.randn(1, 3, 24, generator=generator),
            y=torch.randn(1, 16, generator=generator),
            guidance=torch.tensor([3.5]),
            ref_latents=[torch.randn(1, 16, 2, 4, generator=generator)],
        ).float()


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("layout", ["bfl", "prefixed", "saved", "diffusers", "sharded"])
def test_every_layout_is_the_same_network(folder: Path, weights: dict[str, Tensor], layout: str) -> None:
    name = "tiny.safetensors"
    if layout == "bfl":
        write_kontext(folder / name, weights)
    elif layout == "prefixed":
        write_kontext(folder / name, weights, prefix="model.diffusion_model.")
    elif layout == "saved":
        write_saved(folder / name, weights)
    elif layout == "diffusers":
        write_diffusers(folder / name, weights)
    else:
        name = "kontext/transformer"
        write_sharded(folder / name, weights)
    model = load(name)
    network = model.model.diffusion_model
    assert (network.num_heads, network.params.axes_dim) == (2, [4, 14, 14])
    assert type(model.model).__name__ == "Flux"
    assert relative_error(velocity(model), velocity(kontext_model(weights))) < 1e-6


@pytest.mark.parametrize("layout", ["bfl", "diffusers"])
def test_fp8_files_keep_their_values(folder: Path, weights: dict[str, Tensor], layout: str) -> None:
    small = rounded_to_fp8(weights)
    expected = velocity(kontext_model(unscaled(small)))
    write_kontext(folder / "fp8.safetensors", small if layout == "bfl" else diffusers_weights(small))
    assert relative_error(velocity(load("fp8.safetensors")), expected) < 1e-5
    kept = load("fp8.safetensors", "fp8_e4m3fn")
    stored = kept.model.diffusion_model.state_dict()
    for name in ("double_blocks.1.img_attn.qkv.weight", "final_layer.adaLN_modulation.1.weight"):
        assert torch.equal(stored[name].view(torch.uint8), small[name].view(torch.uint8))
    assert relative_error(velocity(kept), expected) < BF16_ROUNDING


def test_scaled_fp8_files_apply_their_scales(folder: Path, weights: dict[str, Tensor]) -> None:
    scaled = scaled_to_fp8(weights)
    expected = velocity(kontext_model(unscaled(scaled)))
    write_kontext(folder / "scaled.safetensors", scaled)
    model = load("scaled.safetensors")
    assert relative_error(velocity(model), expected) < BF16_ROUNDING
    stored = model.model.diffusion_model.state_dict()
    name = "single_blocks.0.linear1."
    assert torch.equal(stored[name + "weight"].view(torch.uint8), scaled[name + "weight"].view(torch.uint8))
    # The first spelling is older hosts', the second newer ones'.
    (scale,) = (stored[name + end] for end in ("scale_weight", "weight_scale") if name + end in stored)
    assert scale == scaled[name + "scale_weight"]


def test_scaled_fp8_in_diffusers_layout(folder: Path, weights: dict[str, Tensor]) -> None:
    """Query, key and value have scales of their own there; ours are brought to one, within fp8's rounding."""
    scaled = scaled_to_fp8(diffusers_weights(weights))
    write_kontext(folder / "scaled.safetensors", scaled)
    got = velocity(load("scaled.safetensors"))
    assert relative_error(got, velocity(kontext_model(weights))) < 0.1
    kept = unscaled(load("scaled.safetensors").model.diffusion_model.state_dict())
    for name, rows in (("to_q", slice(0, 64)), ("to_v", slice(128, 192))):
        source = f"transformer_blocks.1.attn.{name}."
        given = scaled[source + "weight"].float() * scaled[source + "scale_weight"]
        assert relative_error(kept["double_blocks.1.img_attn.qkv.weight"][rows], given) < 0.03


def respelt(scaled: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scales as other programs name them, without ComfyUI's marker."""
    names = {name: name.replace("scale_weight", "weight_scale") for name in scaled if name != "scaled_fp8"}
    return {new: scaled[old] for old, new in names.items()}


@pytest.mark.parametrize("layout", ["bfl", "diffusers"])
@pytest.mark.parametrize("marked", [False, True])
def test_scales_spelt_the_other_way_are_the_same_network(
    folder: Path, weights: dict[str, Tensor], layout: str, marked: bool
) -> None:
    scaled = scaled_to_fp8(weights if layout == "bfl" else diffusers_weights(weights))
    write_kontext(folder / "usual.safetensors", scaled)
    marker = {"scaled_fp8": scaled["scaled_fp8"]} if marked else {}
    write_kontext(folder / "other.safetensors", respelt(scaled) | marker)
    assert torch.equal(velocity(load("other.safetensors")), velocity(load("usual.safetensors")))


@pytest.mark.parametrize("layout", ["bfl", "diffusers"])
def test_scales_of_rows_are_brought_to_one(folder: Path, weights: dict[str, Tensor], layout: str) -> None:
    scaled = respelt(scaled_to_fp8(weights if layout == "bfl" else diffusers_weights(weights)))
    for name, weight in list(scaled.items()):
        if f"{name}_scale" in scaled:
            scaled[f"{name}_scale"] = scaled[f"{name}_scale"].expand(len(weight), 1).contiguous()
    write_kontext(folder / "rows.safetensors", scaled)
    assert relative_error(velocity(load("rows.safetensors")), velocity(kontext_model(weights))) < 0.1


def test_notes_on_diffusers_layers_do_not_hide_the_scales(folder: Path, weights: dict[str, Tensor]) -> None:
    scaled = scaled_to_fp8(diffusers_weights(weights))
    write_kontext(folder / "usual.safetensors", scaled)
    layers = {name.removesuffix(".scale_weight"): {"format": "float8_e4m3fn"} for name in scaled}
    notes = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    save_file(respelt(scaled), folder / "noted.safetensors", metadata=notes)
    assert torch.equal(velocity(load("noted.safetensors")), velocity(load("usual.safetensors")))


@pytest.mark.parametrize(
    ("name", "scale", "message"),
    [
        ("proj_out.weight_scale_2", torch.ones(1), "1 scales of this file fit no weight .* proj_out.weight_"),
        ("transformer_blocks.1.ff.net.9.weight_scale", torch.ones(1), "fit no weight that is read"),
        ("proj_out.weight_scale", torch.ones(3), r"final_layer.linear.weight .* scale of the shape \(3,\)"),
    ],
)
def test_a_scale_that_cannot_be_kept_is_an_error(
    folder: Path, weights: dict[str, Tensor], name: str, scale: Tensor, message: str
) -> None:
    scaled = respelt(scaled_to_fp8(diffusers_weights(weights)))
    write_kontext(folder / "odd.safetensors", scaled | {name: scale})
    with pytest.raises(ValueError, match=message):
        load("odd.safetensors")


def test_the_released_size_goes_through_comfyuis_own_loader(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3072 channels in 24 heads of 128 (one block of zeros, sparse on disk): the host's loader is asked."""
    from pack.model_loaders.kontext import load_kontext

    import comfy.sd

    asked = []

    def record(weights: dict[str, Tensor], **options: Any) -> Any:
        asked.append((tuple(weights["double_blocks.0.img_attn.qkv.weight"].shape), options["model_options"]))
        return kontext_model()

    monkeypatch.setattr(comfy.sd, "load_diffusion_model_state_dict", record)
    write_sparse(folder / "released.safetensors", released_shapes())
    load_kontext("released.safetensors", "fp8_e4m3fn")
    assert asked == [((9216, 3072), {"dtype": torch.float8_e4m3fn})]


def test_a_small_network_is_loaded_again_without_dynamic_memory_when_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer hosts have a second kind of patcher and call the loader again to have one of the first."""
    import comfy.model_patcher

    class DynamicPatcher(comfy.model_patcher.ModelPatcher):
        pass

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", DynamicPatcher, raising=False)
    write_kontext(folder / "tiny.safetensors")
    first = load("tiny.safetensors")
    again, arguments = first.cached_patcher_init
    assert type(first) is DynamicPatcher
    assert type(again(*arguments, disable_dynamic=True)) is comfy.model_patcher.ModelPatcher


def test_a_small_scaled_network_is_noted_as_the_hosts_loader_notes_it(
    folder: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer hosts read scales only from notes on layers, which their own loader makes first."""
    import comfy.utils

    scaled = scaled_to_fp8(weights)

    def convert(given: dict[str, Tensor], prefix: str, metadata: dict[str, str]) -> Any:
        assert given.keys() == scaled.keys() and prefix == ""
        return unscaled(given), metadata

    monkeypatch.setattr(comfy.utils, "convert_old_quants", convert, raising=False)
    write_kontext(folder / "scaled.safetensors", scaled)
    assert torch.equal(velocity(load("scaled.safetensors")), velocity(kontext_model(unscaled(scaled))))


@pytest.mark.parametrize("field", ["layer_quant_config", "quant_config"])
def test_noted_layers_leave_the_compute_type_to_the_host(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    from pack.model_loaders.kontext import set_dtypes

    import comfy.model_management

    asked = []
    monkeypatch.setattr(
        comfy.model_management, "unet_manual_cast", lambda dtype, *more: asked.append(dtype) or torch.bfloat16
    )
    for notes in (None, {"img_in": {"format": "float8_e4m3fn"}}):
        config = kontext_config()
        setattr(config, field, notes)
        set_dtypes(config, kontext_weights(), {"dtype": torch.float16})
    assert asked == [torch.float16, None]


def released_shapes() -> dict[str, list[int]]:
    """Every weight of one double block and the outer layers at FLUX.1's size."""
    sizes = {24: 4096, 16: 768, 64: 3072, 192: 9216, 256: 12288, 384: 18432, 128: 6144, 32: 128}
    kept = {}
    for name, weight in kontext_weights().items():
        if name.startswith(("double_blocks.1", "single_blocks")):
            continue
        shape = [sizes[size] for size in weight.shape]
        if name in ("img_in.weight", "final_layer.linear.weight"):
            shape = [3072, 64] if name.startswith("img") else [64, 3072]
        elif name == "final_layer.linear.bias":
            shape = [64]
        elif name in ("time_in.in_layer.weight", "guidance_in.in_layer.weight"):
            shape = [3072, 256]
        kept[name] = shape
    return kept


def write_sparse(path: Path, shapes: dict[str, list[int]]) -> None:
    """A safetensors file of fp8 zeros that occupies no disk space."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + int(torch.tensor(shape).prod())
        header[name] = {"dtype": "F8_E4M3", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def test_names_offered(folder: Path) -> None:
    from pack.model_loaders.kontext import kontext_names

    write_kontext(folder / "one.safetensors", {"a": torch.zeros(1)})
    write_kontext(folder / "sub" / "two.sft", {"a": torch.zeros(1)})
    (folder / "three.gguf").write_bytes(b"GGUF")
    (folder / "four.ckpt").write_bytes(b"")
    write_sharded(folder / "kontext" / "transformer")
    assert kontext_names() == ["kontext/transformer", "one.safetensors", "sub/two.sft"]


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "..\\outside.safetensors"])
def test_a_path_that_leaves_the_model_folders_is_refused(folder: Path, name: str) -> None:
    write_kontext(folder.parent / "outside.safetensors")
    with pytest.raises(ValueError, match="leaves the model folders"):
        load(name)


def test_an_unknown_name_lists_what_is_there(folder: Path) -> None:
    write_kontext(folder / "here.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(FileNotFoundError, match=r"no safetensors file 'gone.safetensors' .* found: here"):
        load("gone.safetensors")


def test_a_missing_shard_is_named(folder: Path) -> None:
    write_sharded(folder / "kontext")
    (folder / "kontext" / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has 2 of 3 shards, missing: 2"):
        load("kontext")


def test_a_truncated_file_is_refused_and_the_next_load_works(
    folder: Path, weights: dict[str, Tensor]
) -> None:
    path = write_kontext(folder / "cut.safetensors", weights)
    whole = path.read_bytes()
    for size in (len(whole) - 100, 50, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"cut.safetensors is damaged or incomplete .* {size:,} bytes"):
            load("cut.safetensors")
    path.write_bytes(whole)
    assert velocity(load("cut.safetensors")).isfinite().all()


def test_a_file_with_missing_weights_is_refused(folder: Path, weights: dict[str, Tensor]) -> None:
    rest = {name: weight for name, weight in weights.items() if "txt_mlp" not in name}
    write_kontext(folder / "part.safetensors", rest)
    with pytest.raises(
        ValueError, match=r"lacks 8 of \d+ weights of FLUX.1 Kontext, first double_blocks.0.txt_mlp"
    ):
        load("part.safetensors")


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["lora_unet_double_blocks_0_img_attn_proj.lora_up.weight"], "a LoRA; put it in models/loras"),
        (["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"], "a LoRA"),
        (["decoder.conv_in.weight", "encoder.conv_in.weight"], "a VAE"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a Stable Diffusion UNet"),
        (["double_blocks.0.img_attn.qkv.weight", "double_stream_modulation_img.lin.weight"], "FLUX.2"),
        (["double_blocks.0.img_attn.qkv.weight", "distilled_guidance_layer.norms.0.scale"], "Chroma"),
        (["transformer_blocks.0.attn.add_q_proj.wscales"], r"nunchaku \(SVDQuant\)"),
        (["double_blocks.0.img_attn.qkv.weight.quant_state.bitsandbytes__nf4"], "bitsandbytes 4-bit"),
        (["encoder.block.0.layer.0.SelfAttention.k.weight"], "a T5 text encoder"),
        (["some.weight", "other.weight"], "unknown, with weights such as other.weight, some.weight"),
    ],
)
def test_another_kind_of_file_is_named(folder: Path, names: list[str], kind: str) -> None:
    write_kontext(folder / "other.safetensors", {name: torch.zeros(1) for name in names})
    with pytest.raises(
        ValueError, match=f"other.safetensors is not a FLUX.1 Kontext model: it looks like .*{kind}"
    ):
        load("other.safetensors")


def test_a_relative_with_all_of_kontexts_names_is_refused(weights: dict[str, Tensor]) -> None:
    from pack.model_loaders.state_dicts import RELATIVES, kontext_shape

    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    assert kontext_shape("mine.safetensors", shapes)
    for mark, kind in RELATIVES:
        with pytest.raises(ValueError, match=f"looks like {re.escape(kind)}"):
            kontext_shape("mine.safetensors", {**shapes, f"x.{mark}": (1,)})


def test_a_flux_that_is_not_kontext_is_named(folder: Path, weights: dict[str, Tensor]) -> None:
    rest = {name: weight for name, weight in weights.items() if not name.startswith("guidance_in")}
    write_kontext(folder / "schnell.safetensors", rest)
    with pytest.raises(
        ValueError, match=r"schnell.safetensors is not a FLUX.1 Kontext model: .* FLUX.1 schnell"
    ):
        load("schnell.safetensors")


def test_an_unknown_weight_dtype_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="weight_dtype is 'int3'; one of default, fp8_e4m3fn"):
        load("x.safetensors", "int3")

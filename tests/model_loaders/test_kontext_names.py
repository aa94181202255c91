"""Kontext's weight names on older and newer hosts: the host's LoRA table, and files that ComfyUI saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from host_models import kontext_weights, scaled_to_fp8, unscaled, write_diffusers, write_kontext, write_saved
from pack.dit.flux_names import diffusers_sources, released_name
from pack.training.families.kontext_files import base_tensors, network_arguments

pytestmark = pytest.mark.host

Table = Callable[..., dict[str, Any]]


def load(name: str) -> Any:
    from pack.nodes.kontext import LoadKontext

    return LoadKontext.execute(name, "default").args[0]


def with_newer_names(table: Table) -> Table:
    """The host's table as newer hosts have it: other trainers' names, and norms with a weight."""
    more = {
        "transformer_blocks.0.ff.linear_in.weight": "double_blocks.0.img_mlp.0.weight",
        "transformer_blocks.0.ff_context.linear_out.bias": "double_blocks.0.txt_mlp.2.bias",
        "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight": "single_blocks.0.linear1.weight",
        "single_transformer_blocks.0.attn.to_out.weight": "single_blocks.0.linear2.weight",
    }

    def newer(config: dict[str, Any], output_prefix: str = "") -> dict[str, Any]:
        places = table(config, output_prefix) | {name: output_prefix + to for name, to in more.items()}
        return {
            name: place.replace("_norm.scale", "_norm.weight") if isinstance(place, str) else place
            for name, place in places.items()
        }

    return newer


@pytest.mark.parametrize("write", [write_kontext, write_saved, write_diffusers])
def test_the_hosts_table_for_loras_asks_for_no_more_weights(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Path]
) -> None:
    from pack.model_loaders.lora_check import bare_kontext

    import comfy.utils

    monkeypatch.setattr(comfy.utils, "flux_to_diffusers", with_newer_names(comfy.utils.flux_to_diffusers))
    path = write(models_dir / "diffusion_models" / "tiny.safetensors")
    names = {released_name(name) for name in load(path.name).model.diffusion_model.state_dict()}
    assert names == set(diffusers_sources(2, 2))
    bare = bare_kontext([path]).diffusion_model.state_dict()
    assert {released_name(name) for name in bare} == names


def test_our_table_is_the_hosts_without_other_programs_names() -> None:
    import comfy.utils

    config = {"depth": 2, "depth_single_blocks": 3, "hidden_size": 64}
    places = {
        name: (place, (0, 0)) if isinstance(place, str) else (place[0], place[1] or (0, 0))
        for name, place in comfy.utils.flux_to_diffusers(config).items()
    }
    for target, sources in diffusers_sources(2, 3).items():
        assert {released_name(places[source][0]) for source in sources} == {target}
        rows = [places[source][1][1] for source in sources]
        assert rows == sorted(set(rows))


@pytest.mark.parametrize("scaled", [False, True], ids=["float32", "scaled fp8"])
def test_a_file_saved_by_comfyui_loads_and_is_trained_on(
    models_dir: Path, output_dir: Path, scaled: bool
) -> None:
    from comfy_extras.nodes_model_merging import ModelSave

    weights = scaled_to_fp8(kontext_weights()) if scaled else kontext_weights()
    folder = models_dir / "diffusion_models"
    write_kontext(folder / "first.safetensors", weights)
    first = load("first.safetensors")
    ModelSave().save(first, "kontext")
    (saved,) = output_dir.rglob("kontext*.safetensors")
    again = load(saved.rename(folder / "again.safetensors").name)
    assert_equal_weights(again, first)
    assert network_arguments(folder / "again.safetensors")["num_layers"] == 2
    expected = dict(base_tensors(write_kontext(folder / "plain.safetensors", unscaled(weights))))
    got = dict(base_tensors(folder / "again.safetensors"))
    assert got.keys() == expected.keys()
    # ComfyUI keeps a scaled network's biases in fp8 or in bf16.
    tolerance = {"rtol": 0.07, "atol": 0.01} if scaled else {"rtol": 0.0, "atol": 0.0}
    for name, tensor in got.items():
        torch.testing.assert_close(tensor.float(), expected[name], **tolerance)


def assert_equal_weights(one: Any, other: Any) -> None:
    ours, theirs = (unscaled(patcher.model.diffusion_model.state_dict()) for patcher in (one, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name

"""A base in shards: diffusers' own folder is the same network as one file, and what is missing is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from pack.training.base_files import base_files, files_sha256, weights_of
from pack.training.families.kontext import KontextFamily
from pack.training.files import file_sha256
from safetensors.torch import load_file, save_file

from tests.training.families.test_kontext import run_config
from tests.training.tiny_flux import saved_flux, tiny_flux

CPU = torch.device("cpu")
INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The folder diffusers writes when a file may hold 400 kB."""
    folder = tmp_path / "kontext"
    tiny_flux().save_pretrained(folder, max_shard_size="400KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


@pytest.mark.parametrize("place", ["folder", "parent of transformer", "first shard", "without index"])
def test_a_folder_of_shards_is_the_network_of_one_file(shards: Path, tmp_path: Path, place: str) -> None:
    base = shards
    if place == "parent of transformer":
        base = tmp_path / "whole"
        base.mkdir()
        shards.rename(base / "transformer")
        (base / "model_index.json").write_text("{}")
    elif place == "first shard":
        base = min(shards.glob("*.safetensors"))
        save_file({"other": torch.zeros(1)}, shards / "beside.safetensors")
    elif place == "without index":
        (shards / INDEX).unlink()
    network = KontextFamily().load_network(run_config(base), CPU)
    whole = KontextFamily().load_network(run_config(saved_flux(tmp_path, tiny_flux())), CPU)
    assert network.config == whole.config
    for name, tensor in whole.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name


def test_a_scale_in_another_shard_is_found(tmp_path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in tiny_flux().state_dict().items()}
    name = "transformer_blocks.0.attn.to_q.weight"
    full = state.pop(name)
    scale = full.abs().max() / 448
    save_file(
        state | {name: (full / scale).to(torch.float8_e4m3fn)}, tmp_path / "m-00001-of-00002.safetensors"
    )
    scales = {name.removesuffix("weight") + "scale_weight": scale.reshape(())}
    save_file(scales, tmp_path / "m-00002-of-00002.safetensors")
    network = KontextFamily().load_network(run_config(tmp_path), CPU)
    torch.testing.assert_close(network.get_parameter(name), full, rtol=0.07, atol=0.01)


def test_missing_shards_are_named(shards: Path) -> None:
    second = sorted(shards.glob("*.safetensors"))[1]
    second.unlink()
    for base in (shards, min(shards.glob("*.safetensors"))):
        with pytest.raises(FileNotFoundError, match=f"{second.name}.*download the rest"):
            KontextFamily().load_network(run_config(base), CPU)
    (shards / INDEX).unlink()
    with pytest.raises(FileNotFoundError, match=rf"missing: 2 \({second.name}\); download the rest"):
        base_files(shards)


def test_a_tensor_no_shard_holds_is_missed(shards: Path) -> None:
    file = next(f for f in shards.glob("*.safetensors") if "proj_out.bias" in load_file(f))
    tensors = load_file(file)
    del tensors["proj_out.bias"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"1 tensors are missing \(proj_out\.bias\)"):
        KontextFamily().load_network(run_config(shards), CPU)


def test_broken_folders_say_what_is_wrong(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no base model"):
        KontextFamily().load_network(run_config(tmp_path / "gone"), CPU)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="has no single model: a folder must hold one"):
        base_files(empty)
    (empty / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"only \.safetensors files are trained on"):
        base_files(empty)
    cut = min(shards.glob("*.safetensors"))
    cut.write_bytes(cut.read_bytes()[:-8])
    with pytest.raises(ValueError, match=f"{cut.name} is damaged or incomplete .*download it again"):
        KontextFamily().load_network(run_config(shards), CPU)
    for text in ("{", json.dumps({"metadata": {}}), "[]"):
        (shards / INDEX).write_text(text)
        with pytest.raises(ValueError, match="is no readable index of shards"):
            base_files(shards)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><title>Sign in</title>", b"<!D"])
def test_a_page_saved_as_a_model_is_said_to_be_damaged(tmp_path: Path, content: bytes) -> None:
    page = tmp_path / "page.safetensors"
    page.write_bytes(content)
    with pytest.raises(ValueError, match=r"page\.safetensors is damaged or incomplete .*download it again"):
        KontextFamily().load_network(run_config(page), CPU)


def test_pickled_shards_are_not_trained_on(shards: Path) -> None:
    torch.save({"x": torch.ones(2)}, shards / "x.bin")
    (shards / INDEX).write_text(json.dumps({"weight_map": {"x": "x.bin"}}))
    with pytest.raises(ValueError, match=r"index\.json names x\.bin, which may run code"):
        base_files(shards)


def test_a_base_is_known_by_its_files(shards: Path, tmp_path: Path) -> None:
    one = saved_flux(tmp_path, tiny_flux())
    assert files_sha256(weights_of(one)) == file_sha256(one)
    several = weights_of(shards)
    assert several == base_files(shards)
    digests = "".join(file_sha256(file) for file in several)
    assert files_sha256(several) == hashlib.sha256(digests.encode()).hexdigest()
    assert weights_of(tmp_path / "gone") == ()

"""Model folders: written whole, read back exactly, and every fault named."""

from __future__ import annotations

import errno
import json

import pytest
import torch
from pack.dit.dreamomni import storage
from pack.dit.dreamomni.storage import (
    FolderIndex,
    load_network,
    load_vae,
    read_index,
    read_weights,
    save_dreamomni,
)
from pack.dit.dreamomni.vae import SmallVAE, SmallVAEConfig
from safetensors import safe_open
from safetensors.torch import save_file


@pytest.fixture
def written(tmp_path, make_network, make_config):
    network = make_network(make_config(), dtype=torch.float32)
    vae = SmallVAE(SmallVAEConfig(downscale=4, latent_channels=4, width=8, max_width=16))
    index = FolderIndex(network=network.config)
    files = save_dreamomni(
        tmp_path / "toy", index, network.state_dict(), vae=vae, metadata={"recipe.seed": "3"}
    )
    return tmp_path / "toy", network, vae, files


def test_what_is_written_is_read_back(written) -> None:
    folder, network, vae, files = written
    assert sorted(path.relative_to(folder).as_posix() for path in files) == [
        "config.json",
        "dit.safetensors",
        "vae/config.json",
        "vae/vae.safetensors",
    ]
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(files)
    assert read_index(folder) == FolderIndex(network=network.config)
    again = load_network(folder)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    assert torch.equal(
        vae.encode(torch.ones(1, 3, 8, 8)), load_vae(folder / "vae").encode(torch.ones(1, 3, 8, 8))
    )
    with safe_open(folder / "dit.safetensors", "pt") as file:
        assert file.metadata()["recipe.seed"] == "3"
        assert json.loads(file.metadata()["dreamomni.config"])["width"] == 32


def test_a_full_disk_leaves_the_old_folder_as_it_was(written, monkeypatch) -> None:
    folder, network, _, _ = written
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def disk_full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "save_file", disk_full)
    changed = {name: part + 1 for name, part in network.state_dict().items()}
    with pytest.raises(OSError, match="No space left"):
        save_dreamomni(folder, FolderIndex(network=network.config), changed)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_weights_of_another_network_are_refused_before_writing(tmp_path, make_network, make_config) -> None:
    weights = make_network(make_config(), dtype=torch.float32).state_dict()
    del weights["vlm_in.weight"]
    weights["extra.weight"] = torch.zeros(2)
    weights["exit.out.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match="does not hold the network") as caught:
        save_dreamomni(tmp_path / "bad", FolderIndex(network=make_config()), weights)
    text = str(caught.value)
    assert "1 missing: vlm_in.weight" in text
    assert "1 unexpected: extra.weight" in text
    assert "1 of another shape: exit.out.bias (3,) instead of (4,)" in text
    assert not (tmp_path / "bad").exists()


def test_missing_and_extra_keys_of_a_file_are_listed(written) -> None:
    folder, network, _, _ = written
    weights = network.state_dict()
    first = next(iter(weights))
    weights["not.ours"] = weights.pop(first)
    save_file({name: part.contiguous() for name, part in weights.items()}, folder / "dit.safetensors")
    with pytest.raises(ValueError, match=rf"1 missing: {first}.*1 unexpected: not\.ours"):
        load_network(folder)


def test_comfyui_prefixes_are_removed(written) -> None:
    folder, network, _, _ = written
    for prefix in storage.PREFIXES:
        prefixed = {prefix + name: part for name, part in network.state_dict().items()}
        save_file(prefixed, folder / "dit.safetensors")
        assert read_weights(folder / "dit.safetensors").keys() == network.state_dict().keys()


def test_a_cut_file_is_named(written) -> None:
    folder = written[0]
    path = folder / "dit.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"dit\.safetensors is damaged or incomplete .* cut off"):
        load_network(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"dit\.safetensors is missing"):
        load_network(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not readable JSON"),
        ("[1]", "holds list, a JSON object is needed"),
        ("{}", "has the format None, a DreamOmni folder"),
        ('{"format": "dreamomni-1", "network": {"wide": 1}}', "does not know: wide"),
        ('{"format": "dreamomni-1", "vlm": "../../secret"}', "names '../../secret' as 'vlm'"),
        ('{"format": "dreamomni-1", "vae": "/etc"}', "names '/etc' as 'vae'"),
        ('{"format": "dreamomni-1", "vae": "C:x"}', "names 'C:x' as 'vae'"),
    ],
)
def test_a_bad_config_is_named(tmp_path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_index(tmp_path)


def test_an_empty_folder_says_what_belongs_there(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing.*dit\.safetensors, vlm/ and vae/"):
        read_index(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing\. A small VAE's folder holds"):
        load_vae(tmp_path)


def test_a_vae_that_is_not_its_config_is_named(written) -> None:
    folder = written[0]
    config = json.loads((folder / "vae" / "config.json").read_text())
    for change in ({"latent_channels": 6}, {"blocks": 2}):
        (folder / "vae" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match="does not hold the VAE"):
            load_vae(folder / "vae")

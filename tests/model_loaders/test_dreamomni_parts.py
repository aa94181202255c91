"""The VAE and the VLM of a DreamOmni folder, and what may be wrong with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dreamomni_sampling import draw, load, sample
from pack.dit.dreamomni.latent import LatentSpec
from safetensors.torch import save_file
from tiny_dreamomni import small_vae, toy_config, vae_latent, write_network

pytestmark = pytest.mark.host


@pytest.mark.parametrize("kind", ["pixels", "small"])
def test_the_vae_is_comfyuis(tmp_path, kind) -> None:
    from pack.model_loaders.dreamomni_vae import open_vae

    import comfy.sd

    config = toy_config() if kind == "pixels" else toy_config(latent=vae_latent())
    vae = open_vae(write_network(tmp_path / "toy", config), "vae", config.latent)
    assert isinstance(vae, comfy.sd.VAE)
    picture = torch.rand(2, 35, 42, 3, generator=torch.Generator().manual_seed(0))
    latent = vae.encode(picture)
    spec = config.latent
    assert latent.shape == (2, spec.channels, 32 // spec.downscale, 40 // spec.downscale)
    decoded = vae.decode(latent)
    assert decoded.shape == (2, 32, 40, 3)
    cropped = picture[:, 1:33, 1:41]
    if kind == "pixels":
        torch.testing.assert_close(decoded, cropped, rtol=0, atol=1e-5)
    else:
        module = small_vae()
        with torch.no_grad():
            expected = module.encode(cropped.movedim(-1, 1) * 2 - 1)
        torch.testing.assert_close(latent, expected, rtol=1e-4, atol=1e-4)
    tiled = vae.decode_tiled(latent, tile_x=4, tile_y=4, overlap=1)
    assert tiled.shape == decoded.shape


def test_a_stock_vae_file_is_read_by_name_or_from_the_folder(models_dir) -> None:
    from pack.model_loaders.dreamomni_vae import open_vae

    import comfy.taesd.taesd

    spec = LatentSpec()
    weights = comfy.taesd.taesd.TAESD(latent_channels=16).state_dict()
    weights |= {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    folder = models_dir / "dreamomni" / "toy"
    (folder / "vae").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"does not exist|Put the VAE file there"):
        open_vae(folder, "vae", spec)
    save_file(weights, models_dir / "vae" / "ae.safetensors")
    assert open_vae(folder, "ae.safetensors", spec).latent_channels == 16
    save_file(weights, folder / "vae" / "one.safetensors")
    assert open_vae(folder, "vae", spec).latent_channels == 16
    with pytest.raises(ValueError, match="makes 16 channels at 1/8 size, the network needs 4 at 1/8"):
        open_vae(folder, "vae", replace(spec, kind="sdxl", channels=4))
    save_file(weights, folder / "vae" / "two.safetensors")
    with pytest.raises(FileNotFoundError, match=r"holds one\.safetensors, two\.safetensors: keep one"):
        open_vae(folder, "vae", spec)


@pytest.mark.parametrize("name", ["ae.pt", "ae.bin", "ae.ckpt"])
@pytest.mark.parametrize("kind", ["vae", "dreamomni/toy"])
def test_a_pickled_vae_is_not_unpickled(models_dir, monkeypatch, name, kind) -> None:
    from pack.model_loaders.dreamomni import shared_parts
    from pack.model_loaders.dreamomni_vae import open_vae

    folder = models_dir / "dreamomni" / "toy"
    folder.mkdir()
    torch.save({"x": torch.ones(2)}, models_dir / kind / name)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    with pytest.raises(
        ValueError, match=rf"config\.json names {name}, .* only \.safetensors and \.sft files"
    ):
        open_vae(folder, name, LatentSpec())
    assert shared_parts(folder) == []


def test_wrong_dtypes_and_conditionings_are_named(tmp_path) -> None:
    folder = write_network(tmp_path / "toy")
    with pytest.raises(ValueError, match="weight_dtype 'int3': use one of default, bf16"):
        load(folder, "int3")
    with pytest.raises(ValueError, match="fp16 was never tried"):
        load(folder, "fp16")
    model = load(folder)
    with pytest.raises(ValueError, match=r"reads VLM tokens with 64 channels.*Connect the conditioning"):
        sample(model, [[draw(1, 7, 32), {}]])


def write_vlm_config(folder: Path, width: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_vl", "hidden_size": width}))


def test_a_missing_or_wrong_vlm_is_named(models_dir, monkeypatch) -> None:
    from pack.model_loaders import dreamomni

    folder = write_network(models_dir / "dreamomni" / "toy", vlm="qwen")
    with pytest.raises(FileNotFoundError, match="toy has no folder 'qwen' and models/vlm has none either"):
        dreamomni.load_dreamomni(folder, "default")
    write_vlm_config(models_dir / "vlm" / "qwen", 128)
    monkeypatch.setattr(dreamomni, "load_vlm", lambda place, precision: place)
    with pytest.raises(ValueError, match="hidden states with 128 channels, this network was built for 64"):
        dreamomni.load_dreamomni(folder, "default")
    (models_dir / "vlm" / "qwen" / "config.json").write_text('{"model_type": "qwen2_vl"}')
    with pytest.raises(ValueError, match=r"config\.json does not say how wide the VLM's hidden states are"):
        dreamomni.load_dreamomni(folder, "default")
    write_vlm_config(models_dir / "vlm" / "qwen", 64)
    assert dreamomni.load_dreamomni(folder, "default")[1] == models_dir / "vlm" / "qwen"

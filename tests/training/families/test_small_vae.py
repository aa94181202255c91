"""Small VAEs: trained, measured, and taken along by a network."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from dreamomni_runs import (
    CPU,
    TOY,
    run_config,
    sample,
    stored_samples,
    train,
)
from pack.dit.dreamomni.storage import read_index
from pack.training.config import (
    AdapterConfig,
    StageConfig,
)
from pack.training.families import load_family
from pack.training.families.base import CachedSample
from pack.training.families.dreamomni_setup import network_config
from pack.training.trainer import RunFolder
from tiny_dreamomni import vae_latent


def vae_samples() -> list[CachedSample]:
    items = []
    for number in range(8):
        coarse = torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(number)) * 2 - 1
        picture = torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear")[0]
        items.append(dataclasses.replace(sample(number, pictures=0), target=picture))
    return items


def test_a_small_vae_is_trained_and_measured(tmp_path) -> None:
    from pack.dit.dreamomni.storage import load_vae
    from pack.training.families.dreamomni_setup import read_latent

    config = run_config(
        family="small_vae",
        options={"downscale": 4, "latent_channels": 4, "width": 8, "max_width": 16},
        stages=(StageConfig(resolution=16, batch_size=4, steps=40, learning_rate=3e-3),),
    )
    _, losses, exports = train(config, tmp_path, vae_samples())
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    folder = exports / "last"
    spec, vae = read_latent(folder), load_vae(folder)
    pictures = torch.stack([item.target for item in vae_samples()])
    with torch.no_grad():
        seen = (vae.encode(pictures) - spec.shift) * spec.scale
    assert seen.mean().item() == pytest.approx(0.0, abs=0.2)
    assert seen.std().item() == pytest.approx(1.0, abs=0.2)
    shown = torch.einsum("bchw,cr->brhw", seen, torch.tensor(spec.rgb_factors))
    shown = shown + torch.tensor(spec.rgb_bias).view(1, 3, 1, 1)
    small = torch.nn.functional.interpolate(pictures, (4, 4), mode="area")
    assert (shown - small).square().mean() < 0.9 * small.var()
    assert network_config(run_config(base={"vae": str(folder)}, options={})).latent == spec

    # Continued at its end a run has seen no pictures; what was measured stays.
    family = load_family("small_vae")
    network = family.load_network(config, CPU)
    family.export_full(network, dict(network.state_dict()), folder, {}, config)
    assert read_latent(folder) == spec


def test_an_unknown_field_of_a_latent_space_is_named(tmp_path) -> None:
    from pack.training.families.dreamomni_setup import LATENT, read_latent, write_latent

    write_latent(tmp_path / LATENT, vae_latent())
    assert read_latent(tmp_path) == vae_latent()
    text = (tmp_path / LATENT).read_text("utf-8")
    (tmp_path / LATENT).write_text(text.replace('"channels"', '"chanels"'), "utf-8")
    with pytest.raises(ValueError, match=r"latent\.json has fields this version does not know: chanels"):
        read_latent(tmp_path)


def test_a_latent_space_is_measured_on_pictures_of_every_size() -> None:
    from pack.training.families.small_vae import measured_latent
    from tiny_dreamomni import small_vae

    generator, vae = torch.Generator().manual_seed(5), small_vae()
    pictures = [torch.rand(3, h, w, generator=generator) * 2 - 1 for h, w in ((16, 32), (16, 32), (32, 16))]
    spec = measured_latent(vae, pictures)
    with torch.no_grad():
        seen = torch.cat([vae.encode(picture[None]).flatten() for picture in pictures])
    assert spec.shift == pytest.approx(seen.mean().item(), rel=1e-4)
    assert spec.scale == pytest.approx(1 / seen.std().item(), rel=1e-4)


def test_the_held_out_loss_of_a_vae_is_the_same_twice(tmp_path) -> None:
    from pack.training.session import Session
    from pack.training.team import Team
    from pack.training.validation import held_out_loss

    sizes = {"downscale": 4, "latent_channels": 4, "width": 8, "max_width": 16}
    config = run_config(family="small_vae", options=sizes)
    session = Session(config, load_family("small_vae"), CPU)
    asked, real = [], session.family.loss

    def counted(network, batch, noise, sigmas, config):
        asked.append(float(sigmas))
        return real(network, batch, noise, sigmas, config)

    session.family.loss = counted  # ty: ignore[invalid-assignment]
    place = RunFolder(folder=tmp_path / "run", cache=tmp_path / "cache")
    stored_samples(place, vae_samples())
    store = place.open_samples(16)
    losses = [held_out_loss(session, store, [0, 1], Team()) for _ in range(2)]
    assert losses[0] == losses[1] > 0
    assert len(asked) == 4, "one noise level a sample"


def test_a_vae_travels_with_the_network_trained_on_it(tmp_path) -> None:
    from pack.dit.dreamomni.storage import load_vae, save_vae
    from pack.training.families.dreamomni_setup import LATENT, write_latent
    from tiny_dreamomni import small_vae

    save_vae(tmp_path / "vae", small_vae())
    write_latent(tmp_path / "vae" / LATENT, vae_latent())
    config = run_config(base={"vae": str(tmp_path / "vae")}, options={"preset": "tiny", **TOY})
    family = load_family("dreamomni")
    network = family.load_network(config, CPU)
    family.export_full(network, {}, tmp_path / "out", {}, config)
    assert read_index(tmp_path / "out").network.latent == vae_latent()
    assert load_vae(tmp_path / "out" / "vae").config == small_vae().config


def test_a_lora_of_a_vae_is_refused() -> None:
    config = run_config(family="small_vae", adapter=AdapterConfig())
    with pytest.raises(ValueError, match="a small VAE is trained whole"):
        load_family("small_vae").load_network(config, CPU)

"""DreamOmni training: what the network is fed, what it learns, and the folders it leaves."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from pack.dit.dreamomni.config import DreamOmniConfig, tiny_preset
from pack.dit.dreamomni.storage import load_network, read_index
from pack.training.cache import TensorCache
from pack.training.config import (
    AdapterConfig,
    MemoryConfig,
    ObjectiveConfig,
    OptimizerConfig,
    OutputConfig,
    RunConfig,
    StageConfig,
    ValidationConfig,
)
from pack.training.encode import SampleEntry
from pack.training.families import load_family
from pack.training.families.base import CachedSample
from pack.training.families.dreamomni import copy_vlm
from pack.training.families.dreamomni_setup import STAGE_PLANS, network_config
from pack.training.files import write_text
from pack.training.session import Session
from pack.training.team import Team
from pack.training.trainer import RunFolder, Trainer
from safetensors import safe_open
from tiny_dreamomni import random_weights, toy_config, vae_latent, write_network

CPU = torch.device("cpu")
WIDTH = 64
TOY = {
    "network.width": 32,
    "network.heads": 2,
    "network.groups": 1,
    "network.vlm_width": WIDTH,
    "network.conv_width": 16,
    "network.time_width": 16,
    "network.rope_axes": "4,6,6",
}


@pytest.fixture
def family():
    return load_family("dreamomni")


def run_config(**changes) -> RunConfig:
    settings = {
        "name": "toy",
        "family": "dreamomni",
        "task": "all",
        "adapter": None,
        "options": {"preset": "tiny", **TOY},
        "stages": (StageConfig(resolution=16, batch_size=4, steps=30, learning_rate=3e-3),),
        "memory": MemoryConfig(precision="fp32", gradient_checkpointing=True),
        "validation": ValidationConfig(fraction=0.0),
        "output": OutputConfig(checkpoint_every=1000, sample_every=0),
        "optimizer": OptimizerConfig(weight_decay=0.0),
    }
    return RunConfig(**{**settings, **changes})


def sample(number: int, pictures: int = 1, words: int = 4, side: int = 16) -> CachedSample:
    generator = torch.Generator().manual_seed(number)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    index = torch.zeros(words, dtype=torch.long)
    index[:pictures] = torch.arange(1, pictures + 1)
    return CachedSample(
        id=str(number),
        task="edit",
        instruction=f"instruction {number}",
        target=draw(3, side, side).clamp(-1, 1),
        references=tuple(draw(3, side, side).clamp(-1, 1) for _ in range(pictures)),
        prompt={
            "tokens": draw(words, WIDTH),
            "attention_mask": torch.ones(words, dtype=torch.bool),
            "image_index": index,
        },
        has_source=pictures > 0,
    )


def collate(family, config, *samples):
    return family.collate(samples, config, CPU, torch.float32)


def small_network(family, config):
    network = family.load_network(config, CPU)
    generator = torch.Generator().manual_seed(5)
    torch.nn.init.normal_(network.exit.out.weight, std=0.1, generator=generator)
    return network


@torch.no_grad()
def test_pixels_enter_and_leave_the_network_as_blocks(family) -> None:
    config = run_config()
    network, item = small_network(family, config), sample(1, pictures=2)
    batch = collate(family, config, item)
    noisy, sigmas = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(9)), torch.tensor([0.6])
    velocity = family.predict_velocity(network, batch, noisy, sigmas)

    def blocks(picture):
        return torch.nn.functional.pixel_unshuffle(picture, 4)

    expected = network(
        blocks(noisy),
        sigmas,
        item.prompt["tokens"][None],
        None,
        item.prompt["image_index"][None],
        [blocks(reference[None]) for reference in item.references],
    )
    torch.testing.assert_close(blocks(velocity), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_prompts_of_different_length_share_a_batch_and_change_nothing(family) -> None:
    config = run_config()
    network = small_network(family, config)
    short, long = sample(1, words=3), sample(2, words=9)
    assert family.signature(short) == family.signature(long)
    assert family.signature(short) != family.signature(sample(3, pictures=0))
    noisy, sigmas = torch.randn(2, 3, 16, 16), torch.tensor([0.6, 0.2])
    both = family.predict_velocity(network, collate(family, config, short, long), noisy, sigmas)
    for row, item in enumerate((short, long)):
        batch = collate(family, config, item)
        alone = family.predict_velocity(network, batch, noisy[row : row + 1], sigmas[row : row + 1])
        torch.testing.assert_close(both[row], alone[0], rtol=1e-4, atol=1e-4)


def test_prompts_are_padded_on_the_right_with_zeros(family) -> None:
    short, long = sample(1, words=2), sample(2, words=4)
    prompt = collate(family, run_config(), short, long).conditions["prompt"]
    assert torch.equal(prompt["tokens"][0], torch.cat([short.prompt["tokens"], torch.zeros(2, WIDTH)]))
    assert torch.equal(prompt["tokens"][1], long.prompt["tokens"])
    assert prompt["attention_mask"].tolist() == [[True, True, False, False], [True] * 4]
    assert prompt["image_index"].tolist() == [[1, 0, 0, 0]] * 2


@pytest.mark.parametrize("prediction", ["clean", "velocity"])
def test_the_loss_is_the_error_of_what_the_network_predicts(family, prediction) -> None:
    config = run_config(
        options={"preset": "tiny", "network.prediction": prediction, **TOY},
        objective=ObjectiveConfig(region_weighting="mask", mask_weight=4.0),
    )
    network = small_network(family, config)
    mask = torch.zeros(1, 2, 2)
    mask[:, :1] = 1.0
    item = dataclasses.replace(sample(1), mask=mask)
    batch, noise, sigmas = collate(family, config, item), torch.randn(1, 3, 16, 16), torch.tensor([0.3])
    loss = family.loss(network, batch, noise, sigmas, config)
    noisy = 0.7 * item.target + 0.3 * noise
    velocity = family.predict_velocity(network, batch, noisy, sigmas)
    error = (
        (noisy - 0.3 * velocity - item.target) if prediction == "clean" else velocity - noise + item.target
    )
    weights = torch.ones(1, 3, 16, 16)
    weights[:, :, :8] = 4.0
    torch.testing.assert_close(loss, (weights * error.square()).mean()[None], rtol=1e-4, atol=1e-5)


def stored_samples(place: RunFolder, samples: list[CachedSample]) -> None:
    cache, lines = TensorCache(place.cache), []
    for item in samples:
        pictures = [item.target, *item.references]
        keys = [f"picture-{item.id}-{n}" for n in range(len(pictures))]
        for key, picture in zip(keys, pictures, strict=True):
            cache.write(key, {"latent": picture})
        cache.write(f"prompt-{item.id}", dict(item.prompt))
        entry = SampleEntry(
            id=item.id,
            task=item.task,
            instruction=item.instruction,
            target=keys[0],
            references=keys[1:],
            prompts={"full": f"prompt-{item.id}"},
            shapes=[list(picture.shape) for picture in pictures],
            has_source=item.has_source,
        )
        lines.append(json.dumps(dataclasses.asdict(entry)) + "\n")
    write_text(place.manifest(16), "".join(lines))


def train(config: RunConfig, folder: Path, samples: list[CachedSample]):
    place = RunFolder(folder=folder / "run", cache=folder / "cache")
    stored_samples(place, samples)
    session, events = Session(config, load_family(config.family), CPU), []
    outcome = Trainer(session, place, Team(), events.append, lambda: False).run()
    assert outcome == "finished"
    assert not [event for event in events if event["event"].endswith("failed")]
    losses = [event["loss"] for event in events if event["event"] == "step"]
    return session, losses, place.folder / "exports"


def mixed_samples() -> list[CachedSample]:
    """Text-to-image and edits together, prompts of several lengths."""
    return [sample(n, pictures=n % 3, words=4 + n % 2) for n in range(6)]


def test_text_to_image_and_edits_are_learnt_together(tmp_path) -> None:
    session, losses, exports = train(run_config(), tmp_path, mixed_samples())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    folder = exports / "last"
    assert read_index(folder).network == network_config(run_config())
    trained = load_network(folder)
    for name, part in session.network.named_parameters():
        stored = trained.get_parameter(name)
        assert torch.equal(stored, part.detach().to(torch.bfloat16).float()), name
    with safe_open(folder / "dit.safetensors", "pt") as file:
        assert json.loads(file.metadata()["dreamomni.recipe"])["family"] == "dreamomni"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_lora_on_a_folder_has_comfyui_names(tmp_path, precision) -> None:
    base = write_network(tmp_path / "base", toy_config())
    config = run_config(
        base={"model": str(base)},
        options={"positions": "index"},
        adapter=AdapterConfig(rank=4, alpha=4),
        memory=MemoryConfig(precision=precision),
        stages=(StageConfig(resolution=16, batch_size=4, steps=12, learning_rate=1e-2),),
    )
    _, losses, exports = train(config, tmp_path, mixed_samples())
    assert sum(losses[-3:]) < sum(losses[:3])
    with safe_open(exports / "last.safetensors", "pt") as file:
        names = set(file.keys())
        assert file.metadata()["dreamomni.positions"] == "index"
        grown = file.get_tensor("diffusion_model.decoder.0.merge_vlm.lora_B.weight")
    assert grown.abs().max() > 0
    modules = {name.removeprefix("diffusion_model.").split(".lora_")[0] for name in names if "lora_A" in name}
    weights = random_weights(toy_config())
    assert modules == {
        name.removesuffix(".weight")
        for name in weights
        if name.endswith(tuple(f"{end}.weight" for end in load_family("dreamomni").adapter_targets(config)))
    }


def test_going_on_from_a_folder_keeps_its_parts(tmp_path) -> None:
    base = write_network(tmp_path / "base", toy_config(), vlm="qwen", vae="ae.safetensors")
    config = run_config(base={"model": str(base)}, options={}, stages=(StageConfig(steps=1, resolution=16),))
    _, _, exports = train(config, tmp_path, mixed_samples())
    index = read_index(exports / "last")
    assert (index.vlm, index.vae, index.network) == ("qwen", "ae.safetensors", toy_config())


def test_presets_take_changes_for_ablations(tmp_path) -> None:
    off = run_config(options={"preset": "tiny", "network.block_skips": False, "network.groups": 3})
    network = network_config(off)
    assert (network.block_skips, network.groups) == (False, 3)
    assert network_config(run_config(options={"pixel_block": 2})).latent.channels == 12
    assert isinstance(network_config(run_config(options={})), DreamOmniConfig)
    with pytest.raises(ValueError, match="DreamOmni preset is 'huge'; choose one of"):
        network_config(run_config(options={"preset": "huge"}))
    with pytest.raises(ValueError, match="DreamOmni network field is 'depth'; choose one of"):
        network_config(run_config(options={"network.depth": 3}))
    (tmp_path / "config.json").write_text('{"text_config": {"hidden_size": 96}}')
    assert network_config(run_config(base={"vlm": str(tmp_path)}, options={})).vlm_width == 96
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="does not say how wide"):
        network_config(run_config(base={"vlm": str(tmp_path)}, options={}))


def test_the_plan_follows_the_network(family) -> None:
    plan = family.encode_plan(run_config())
    assert (plan.image_encoding, plan.prompt_encoding, plan.size_multiple) == ("pixels", "vlm", 8)
    assert plan.prompt_sees_images and not plan.keep_pixels
    along = family.encode_plan(run_config(options={"train_vlm": True}))
    assert (along.prompt_encoding, along.prompt_sees_images, along.keep_pixels) == ("text", False, True)
    paper = family.encode_plan(run_config(options={"preset": "paper-2.5b"}))
    assert (paper.image_encoding, paper.size_multiple) == ("vae", 16)
    assert {name: plan()[-1].resolution for name, plan in STAGE_PLANS.items()} == {
        "paper-2.5b": 1024,
        "small": 512,
        "tiny": 64,
    }


def test_equal_seeds_start_equal_networks(family) -> None:
    first, again, other = (family.load_network(run_config(seed=s), CPU) for s in (3, 3, 4))
    assert torch.equal(first.vlm_in.weight, again.vlm_in.weight)
    assert not torch.equal(first.vlm_in.weight, other.vlm_in.weight)


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


def test_the_tiny_preset_suits_its_stages() -> None:
    token = tiny_preset().token_pixels
    assert all(stage.resolution % token == 0 for stage in STAGE_PLANS["tiny"]())


def test_a_vlm_whose_copy_broke_off_is_copied_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, place = tmp_path / "mine", tmp_path / "export" / "vlm"
    source.mkdir()
    place.parent.mkdir()
    contents = {name: name.encode() for name in ("config.json", "model.safetensors", "vocab.json")}
    for name, content in contents.items():
        (source / name).write_bytes(content)

    def breaks_off(source: Path, target: Path) -> None:
        target.mkdir()
        shutil.copy(source / "config.json", target)
        raise OSError("No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(shutil, "copytree", breaks_off)
        with pytest.raises(OSError, match="No space left"):
            copy_vlm(run_config(base={"vlm": str(source)}), place)
    assert not list(place.parent.iterdir())
    copy_vlm(run_config(base={"vlm": str(source)}), place)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == contents

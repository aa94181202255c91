"""DreamOmni training: what the network is fed, what it learns, and the folders it leaves."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from dreamomni_runs import (
    CPU,
    TOY,
    WIDTH,
    collate,
    mixed_samples,
    run_config,
    sample,
    small_network,
    train,
)
from pack.dit.dreamomni.config import DreamOmniConfig, tiny_preset
from pack.dit.dreamomni.storage import load_network, read_index
from pack.training.config import (
    AdapterConfig,
    MemoryConfig,
    ObjectiveConfig,
    StageConfig,
)
from pack.training.families import load_family
from pack.training.families.dreamomni import copy_vlm
from pack.training.families.dreamomni_setup import STAGE_PLANS, network_config
from safetensors import safe_open
from tiny_dreamomni import random_weights, toy_config, write_network


@pytest.fixture
def family():
    return load_family("dreamomni")


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

"""OmniGen training against diffusers + peft, and the prompts dropout makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pack.dit.omnigen.prefix import sequence_from_tensor
from pack.dit.omnigen.prompt import tagged_prompt
from pack.training.adapters import inject_lora, lora_parameters
from pack.training.config import AdapterConfig, MemoryConfig, ObjectiveConfig, RunConfig
from pack.training.families import load_family
from pack.training.families.base import CachedSample
from pack.training.objective import code_weights, paper_weights
from safetensors.torch import load_file
from tiny_omnigen import byte_tokenizer, diffusers_model, tiny_config, write_official

CPU = torch.device("cpu")
ONE, TWO = "<img><|image_1|></img>", "<img><|image_2|></img>"


def processor():
    from pack.model_loaders.omnigen_processor import OmniGenProcessor

    return OmniGenProcessor(byte_tokenizer(), tiny_config(), 1)


def run_config(folder: Path, adapter=True, **objective) -> RunConfig:
    return RunConfig(
        name="tiny",
        family="omnigen",
        base={"transformer": str(folder)},
        memory=MemoryConfig(precision="fp32"),
        adapter=AdapterConfig(rank=4, alpha=4) if adapter else None,
        objective=ObjectiveConfig(**objective),
    )


def sample(name="a", seed=0, prompt=f"{ONE} and {TWO} by night", sizes=((6, 4), (4, 6))) -> CachedSample:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    return CachedSample(
        id=name,
        task="edit",
        instruction=name,
        target=draw(4, 6, 4),
        references=tuple(draw(4, *size) for size in sizes),
        prompt=processor().training_entry(prompt, [(h * 8, w * 8) for h, w in sizes]),
        has_source=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_official(tmp_path_factory.mktemp("base"), tiny_config())


def test_one_steps_gradients_equal_diffusers(folder):
    """Gradients with respect to q and v of diffusers' split layers are the rows of our fused one."""
    from pack.dit.omnigen.prompt import tokenize_prompt

    family = load_family("omnigen")
    config = run_config(folder, adapter=False)
    network = family.load_network(config, CPU)
    item = sample()
    batch = family.collate([item], config, CPU, torch.float32)
    noise, sigmas = torch.randn(1, 4, 6, 4), torch.tensor([0.6])
    family.loss(network, batch, noise, sigmas, config).mean().backward()

    model = diffusers_model(tiny_config())
    encode = processor().encode
    tokens = tokenize_prompt(f"{ONE} and {TWO} by night", [6, 6], encode)
    slots = {0: [[slot.start, slot.stop] for slot in tokens.slots]}
    length = len(tokens.token_ids) + 1 + 6
    mask = torch.tril(torch.ones(length, length))
    mask[-6:] = 1
    for start, stop in slots[0]:
        mask[start:stop, start:stop] = 1
    noisy = 0.4 * item.target + 0.6 * noise[0]
    theirs = model(
        noisy[None],
        1 - sigmas,
        torch.tensor([tokens.token_ids]),
        [reference[None] for reference in item.references],
        slots,
        mask[None],
        torch.arange(length)[None],
    ).sample
    # Their velocity runs towards the data.
    (theirs - (item.target - noise[0])[None]).square().mean().backward()
    fused = network.llm.layers[0].self_attn.qkv_proj.weight.grad
    attention = model.layers[0].self_attn
    split = torch.cat([attention.to_q.weight.grad, attention.to_k.weight.grad, attention.to_v.weight.grad])
    assert split.abs().max() > 1e-4
    torch.testing.assert_close(fused, split, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(
        network.llm.embed_tokens.weight.grad, model.embed_tokens.weight.grad, atol=1e-6, rtol=1e-4
    )


def test_a_batch_is_its_samples_alone(folder):
    family = load_family("omnigen")
    config = run_config(folder)
    network = family.load_network(config, CPU)
    same = [sample("a", 1), sample("b", 2)]
    other_place = f"by {ONE} and {TWO} night"
    for samples in (same, [same[0], sample("c", 3, other_place)]):
        batch = family.collate(samples, config, CPU, torch.float32)
        noise, sigmas = torch.randn(2, 4, 6, 4), torch.tensor([0.3, 0.8])
        together = family.predict_velocity(network, batch, noise, sigmas)
        for item, single in enumerate(samples):
            alone = family.collate([single], config, CPU, torch.float32)
            one = family.predict_velocity(network, alone, noise[item][None], sigmas[item][None])
            torch.testing.assert_close(together[item][None], one, atol=1e-5, rtol=1e-5)


def test_lora_trains_only_the_projections(folder):
    family = load_family("omnigen")
    config = run_config(folder)
    network = family.load_network(config, CPU)
    inject_lora(network, config.adapter, family.adapter_targets(config), seed=0)
    trained = dict(lora_parameters(network))
    assert len(trained) == 2 * 2 * 2
    assert all(("qkv_proj" in name) or ("o_proj" in name) for name in trained)
    optimizer = torch.optim.Adam(trained.values(), lr=3e-2)
    batch = family.collate([sample()], config, CPU, torch.float32)
    noise, sigmas = torch.randn(1, 4, 6, 4), torch.tensor([0.5])
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = family.loss(network, batch, noise, sigmas, config).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("kind", "weights"), [("omnigen_paper", paper_weights), ("omnigen_code", code_weights)]
)
def test_both_edit_weightings_reach_the_loss(kind, weights, folder):
    family = load_family("omnigen")
    config = run_config(folder, region_weighting=kind)
    network = family.load_network(config, CPU)
    item = sample(sizes=((6, 4),), prompt=f"{ONE} by night")
    batch = family.collate([item], config, CPU, torch.float32)
    noise, sigmas = torch.randn(1, 4, 6, 4), torch.tensor([0.5])
    with torch.no_grad():
        loss = family.loss(network, batch, noise, sigmas, config)
        velocity = family.predict_velocity(network, batch, 0.5 * item.target + 0.5 * noise, sigmas)
    by_hand = (
        weights(item.target[None], item.references[0][None])
        * (velocity - (noise - item.target[None])).square()
    )
    torch.testing.assert_close(loss[0], by_hand.mean(), atol=1e-5, rtol=1e-5)


def test_dropout_prompts():
    assert tagged_prompt("<cfg>", 0) == "<cfg>"
    assert tagged_prompt("<cfg>", 2) == f"{ONE} {TWO}"
    assert tagged_prompt("Rotate the image 90 degrees", 1) == f"{ONE} Rotate the image 90 degrees"
    assert tagged_prompt("make image 2 red", 2) == f"{ONE} make {TWO} red"
    assert tagged_prompt(f"{ONE} red", 0) == "red"
    assert tagged_prompt("red hat", 1) == f"{ONE} red hat"
    plan = load_family("omnigen").encode_plan(RunConfig(name="x", family="omnigen"))
    assert plan.dropped_caption == "<cfg>"
    assert plan.prompt_sees_images and plan.source_follows_target


def test_a_dropped_condition_runs_without_its_pictures(folder):
    family = load_family("omnigen")
    config = run_config(folder)
    network = family.load_network(config, CPU)
    item = sample(prompt="<cfg>", sizes=())
    kept = CachedSample(
        id="k", task="edit", instruction="", target=item.target, references=(torch.randn(4, 6, 4),),
        prompt=item.prompt, has_source=True,
    )  # fmt: skip
    for one in (item, kept):
        batch = family.collate([one], config, CPU, torch.float32)
        velocity = family.predict_velocity(network, batch, torch.zeros(1, 4, 6, 4), torch.tensor([0.5]))
        assert velocity.shape == (1, 4, 6, 4)
    ids = item.prompt["ids"]
    assert sequence_from_tensor(ids, []).slots == ()


def test_full_training_writes_a_folder_the_loader_reads(folder, tmp_path):
    family = load_family("omnigen")
    config = run_config(folder, adapter=False)
    network = family.load_network(config, CPU)
    assert all(parameter.requires_grad for parameter in network.parameters())
    written = family.export_full(network, network.state_dict(), tmp_path / "out", {"run": "tiny"}, config)
    assert {path.name for path in written} == {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    again = family.load_network(run_config(tmp_path / "out"), CPU)
    name = "llm.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(again.state_dict()[name], network.state_dict()[name], atol=0.02, rtol=0.02)
    assert family.metadata(config) == {"modelspec.architecture": "omnigen-v1"}
    assert family.metadata(run_config(folder)) == {"modelspec.architecture": "omnigen-v1/lora"}


def test_no_base_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="choose a folder of models/omnigen"):
        load_family("omnigen").load_network(run_config(tmp_path / "none"), CPU)


@pytest.mark.host
def test_a_trained_lora_leaves_no_key_unmatched_in_comfyui(folder):
    from pack.model_loaders.omnigen import load_omnigen

    import comfy.lora

    family = load_family("omnigen")
    config = run_config(folder)
    network = family.load_network(config, CPU)
    inject_lora(network, config.adapter, family.adapter_targets(config), seed=0)
    names = list(lora_parameters(network))
    assert names
    model, _ = load_omnigen(folder, "fp32")
    places = comfy.lora.model_lora_keys_unet(model.model, {})
    for name in names:
        module = name.split(".lora_")[0]
        assert f"{family.lora_prefix}{module}" in places

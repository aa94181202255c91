"""Teaching a tiny Qwen2.5-VL: what is learnt, how it is merged, what the files hold."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pack.training.adapters import inject_lora, lora_parameters, saved_lora
from pack.training.answers import AnswerEncoder, lesson, standard_answer, target_words
from pack.training.cache import TensorCache
from pack.training.config import AdapterConfig, MemoryConfig, RunConfig, StageConfig
from pack.training.dataset import EditSample
from pack.training.encode import SampleEntry
from pack.training.families.base import CachedSample
from pack.training.families.vlm import VlmFamily, sft_inputs
from pack.training.files import write_tensors, write_text
from pack.training.session import Session
from pack.training.team import Team
from pack.training.trainer import RunFolder, Trainer
from pack.training.vlm_merge import merge_vlm
from pack.vlm.reply import parse_reply
from PIL import Image
from safetensors.torch import load_file

CPU = torch.device("cpu")


def edit_sample(**changes: object) -> EditSample:
    values = {
        "source": Image.new("RGB", (56, 56), "red"),
        "references": (),
        "instruction": "Make it blue.",
        "task": "recolour",
        "target": Image.new("RGB", (56, 56), "blue"),
        "mask": None,
        "id": "1",
    }
    return EditSample(**{**values, **changes})


@pytest.fixture
def folder(vlm_folder: Callable[[str], Path]) -> Path:
    return vlm_folder("qwen2_5_vl")


def config_for(folder: Path, adapter: AdapterConfig | None) -> RunConfig:
    return RunConfig(
        name="translator",
        family="vlm",
        task="all",
        base={"vlm": str(folder)},
        stages=(StageConfig(resolution=56),),
        adapter=adapter,
        memory=MemoryConfig(precision="fp32"),
    )


def lesson_sample(folder: Path) -> CachedSample:
    from transformers import AutoProcessor

    sample = edit_sample()
    encoder = AnswerEncoder(AutoProcessor.from_pretrained(folder, local_files_only=True), "x")
    prompt = encoder(lesson(sample), [sample.source])
    zero = torch.zeros(1, 1, 1)
    return CachedSample(id="1", task="x", instruction="x", target=zero, references=(zero,), prompt=prompt)


def test_answers_are_what_the_reply_parser_takes() -> None:
    scene = {"target": {"objects": [{"sprite": {"shape": "star", "colour": "red"}, "x": 0.1, "y": 0.9}]}}
    words = "The picture shows a red star at the lower left."
    assert target_words(scene) == words
    orange = {"sprite": {"shape": "star", "colour": "orange"}, "x": 0.5, "y": 0.5}
    assert (
        target_words({"target": {"objects": [orange]}}) == "The picture shows an orange star in the centre."
    )
    edit = edit_sample(scene=scene)
    assert standard_answer(edit) == f"<edit>Make it blue. {words}</edit>"
    assert parse_reply(standard_answer(edit)) == f"Make it blue. {words}"
    drawn = edit_sample(scene=scene, mode="generate", source=None)
    assert standard_answer(drawn) == f"<gene>{words}</gene>"
    told = edit_sample(scene={"description": "A blue square."})
    assert standard_answer(told) == "<edit>Make it blue. A blue square.</edit>"
    assert json.loads(lesson(edit_sample()))["request"] == "Make it blue. It is editing task."


def test_only_the_answer_is_learnt_and_the_loss_is_transformers_own(folder: Path) -> None:
    family, config = VlmFamily(), config_for(folder, AdapterConfig(rank=4, alpha=4))
    sample = lesson_sample(folder)
    learnt = sample.prompt["labels"] != -100
    from transformers import AutoProcessor

    tokenizer = AutoProcessor.from_pretrained(folder, local_files_only=True).tokenizer
    assert tokenizer.decode(sample.prompt["input_ids"][learnt][:-1]) == "<edit>Make it blue.</edit>"
    assert sample.prompt["input_ids"][learnt][-1] == tokenizer.eos_token_id
    network = family.load_network(config, CPU)
    batch = family.collate([sample], config, CPU, torch.float32)
    ours = family.loss(network, batch, torch.zeros(1, 1, 1, 1), torch.zeros(1), config)
    with torch.no_grad():
        theirs = network(**sft_inputs(batch)).loss
    torch.testing.assert_close(ours[0], theirs, rtol=1e-4, atol=1e-5)


def test_a_sample_drawn_twice_in_a_step_is_two_batches(folder: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(
        config_for(folder, AdapterConfig(rank=4, alpha=4)),
        stages=(StageConfig(resolution=56, batch_size=2, gradient_accumulation=2, steps=1),),
    )
    place = RunFolder(folder=tmp_path / "run", cache=tmp_path / "cache")
    cache, sample = TensorCache(place.cache), lesson_sample(folder)
    cache.write("zero", {"latent": sample.target})
    cache.write("lesson", sample.prompt)
    entry = SampleEntry(
        id="1",
        task="x",
        instruction="x",
        target="zero",
        references=["zero"],
        prompts={"full": "lesson"},
        shapes=[],
    )
    write_text(place.manifest(56), json.dumps(dataclasses.asdict(entry)) + "\n")
    session = Session(config, VlmFamily(), CPU)
    trainer = Trainer(session, place, Team(), lambda event: None, lambda: False)
    _, runner, _, _ = trainer.open_stage()
    assert [len(group) for group in runner.batches(runner.slots(0, 0))] == [1, 1, 1, 1]
    loss, norm, _, _ = runner.run(0, 0)
    trainer.close()
    assert loss > 0 and norm > 0


def test_a_lora_learns_the_answer_and_merging_it_gives_the_same_network(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    family, adapter = VlmFamily(), AdapterConfig(rank=16, alpha=16)
    config = config_for(folder, adapter)
    network = family.load_network(config, CPU)
    inject_lora(network, adapter, family.adapter_targets(config), seed=0)
    assert not [name for name in lora_parameters(network) if "visual" in name]
    batch = family.collate([lesson_sample(folder)], config, CPU, torch.float32)
    nothing = torch.zeros(1, 1, 1, 1), torch.zeros(1)
    optimizer = torch.optim.AdamW(lora_parameters(network).values(), lr=0.03)
    losses = []
    for _ in range(25):
        loss = family.loss(network, batch, *nothing, config).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]

    write_tensors(tmp_path / "lora.safetensors", saved_lora(lora_parameters(network), "", adapter))
    merged = merge_vlm(folder, tmp_path / "lora.safetensors", tmp_path / "merged")
    loaded = AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.float32, local_files_only=True)
    with torch.no_grad():
        expected = family.loss(network, batch, *nothing, config)
        torch.testing.assert_close(
            family.loss(loaded, batch, *nothing, config), expected, rtol=2e-2, atol=2e-2
        )
    names = {path.name for path in merged.iterdir()}
    assert {path.name for path in folder.iterdir()} <= names


def test_full_training_keeps_the_picture_side_and_exports_a_folder(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    family, config = VlmFamily(), config_for(folder, None)
    network = family.load_network(config, CPU)
    chosen = dict(family.trainable_parameters(network, config))
    assert chosen
    assert not [name for name in chosen if "visual" in name]
    with torch.no_grad():
        next(iter(chosen.values())).add_(0.5)
    weights = {name: parameter.detach() for name, parameter in chosen.items()}
    family.export_full(network, weights, tmp_path / "out", {"a": "b"}, config)
    again = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", dtype=torch.float32, local_files_only=True
    )
    for (name, ours), theirs in zip(network.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-2, atol=1e-2, msg=name)
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()


def test_another_model_or_no_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="choose a folder of models/vlm"):
        VlmFamily().load_network(config_for(tmp_path / "gone", None), CPU)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"is a 'llama'; qwen2_vl, qwen2_5_vl can be trained"):
        VlmFamily().load_network(config_for(tmp_path, None), CPU)


def test_a_lora_of_another_model_cannot_be_merged(folder: Path, tmp_path: Path) -> None:
    stranger = {"layers.99.self_attn.q_proj.lora_A.weight": torch.zeros(2, 4)}
    stranger["layers.99.self_attn.q_proj.lora_B.weight"] = torch.zeros(4, 2)
    stranger["layers.99.self_attn.q_proj.alpha"] = torch.tensor(2.0)
    write_tensors(tmp_path / "lora.safetensors", stranger)
    with pytest.raises(ValueError, match=r"1 weights of the LoRA are not in"):
        merge_vlm(folder, tmp_path / "lora.safetensors", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_merge_that_fails_leaves_nothing_and_the_old_folder(tmp_path: Path) -> None:
    lora, base, merged = tmp_path / "lora.safetensors", tmp_path / "base", tmp_path / "models" / "merged"
    name = "layers.0.self_attn.q_proj"
    parts = {"lora_A.weight": torch.ones(1, 4), "lora_B.weight": torch.ones(4, 1), "alpha": torch.tensor(1.0)}
    write_tensors(lora, {f"{name}.{part}": tensor for part, tensor in parts.items()})
    write_tensors(base / "model-1.safetensors", {f"model.{name}.weight": torch.zeros(4, 4)})
    (base / "model-2.safetensors").write_bytes(b"cut short")
    merged.mkdir(parents=True)
    (merged / "config.json").write_text("old")
    with pytest.raises(ValueError, match=r"model-2\.safetensors is damaged or incomplete"):
        merge_vlm(base, lora, merged)
    assert [path.name for path in merged.parent.rglob("*")] == ["merged", "config.json"]
    (base / "model-2.safetensors").unlink()
    assert (
        load_file(merge_vlm(base, lora, merged) / "model-1.safetensors")[f"model.{name}.weight"].sum() == 16
    )
    assert not (merged / "config.json").exists()

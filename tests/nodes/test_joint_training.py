"""The joint preset: a translator is taught, its answers become prompts, and the LoRA is trained on them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.nodes.test_training_nodes import ToyClip, pairs, quick_lora

pytestmark = pytest.mark.host

DESCRIPTION = "grey"


def described_pairs(folder: Path) -> Path:
    """Pairs whose samples say what the result shows, so that the answer is not the instruction."""
    path = pairs(folder, count=2) / "samples.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    scene = {"scene": {"description": DESCRIPTION}}
    path.write_text("".join(json.dumps(line | scene) + "\n" for line in lines))
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The joint preset with a rate and length at which a tiny random VLM learns two answers by heart."""
    from pack.training import presets
    from pack.training.config import OutputConfig

    silent = OutputConfig(checkpoint_every=1000, sample_every=0)
    monkeypatch.setattr(presets, "output_for", lambda steps: silent)
    lesson = presets.Overrides(steps=48, learning_rate=0.02, rank=16, gradient_accumulation=2)
    taught = dataclasses.replace(presets.PRESETS["joint"], translator=lesson)
    monkeypatch.setitem(presets.PRESETS, "joint", taught)


@pytest.fixture
def lesson_parts(
    models_dir: Path, tmp_path: Path, quick: None, vlm_folder: Callable[[str], Path]
) -> tuple[Path, Any, Any]:
    """A tiny Kontext file, the described pairs, and the VLM to be taught."""
    from pack.model_loaders.vlm import load_vlm
    from pack.training.dataset import open_dataset

    from tests.training.tiny_flux import saved_flux, tiny_flux

    base = saved_flux(models_dir / "diffusion_models", tiny_flux())
    dataset = open_dataset(described_pairs(tmp_path / "data"))
    return base, dataset, load_vlm(vlm_folder("qwen2_5_vl"), "fp32")


def train(base: Path, dataset: Any, vlm: Any, **changes: object) -> Any:
    from pack.nodes.training import TrainLoRA

    settings = {"run_name": "both", "preset": "joint", **quick_lora()}
    with torch.inference_mode():
        return TrainLoRA.execute(base=base.name, dataset=dataset, vlm=vlm, **(settings | changes)).args


@pytest.mark.timeout(1200)
def test_the_lora_is_trained_on_the_answers_of_the_translator_taught_on_the_same_samples(
    models_dir: Path,
    output_dir: Path,
    lesson_parts: tuple[Path, Any, Any],
) -> None:
    from pack.model_loaders.lora_check import bare_kontext, unmatched_keys
    from pack.model_loaders.vlm import load_vlm
    from pack.nodes.pictures import image_of, in_bucket
    from pack.training.cache import TensorCache
    from pack.training.encode import read_manifest
    from pack.training.metrics import read_metrics
    from pack.vlm.reply import parse_reply

    base, dataset, start = lesson_parts
    name, run = train(base, dataset, start)

    taught = load_vlm(models_dir / "vlm" / "both-translator", "fp32")
    sample = dataset[0]
    pictures = [in_bucket(image_of(image), 64) for image in (sample.source, *sample.references)]
    assert taught.picture_side == 64 and start.picture_side == 1024
    reply = taught.generate_text("do 0 It is editing task.", pictures, 32).text
    assert parse_reply(reply) == f"do 0 {DESCRIPTION}"
    assert start.generate_text("do 0 It is editing task.", pictures, 32).text != reply

    cache = TensorCache(output_dir / "dreamomni" / "training-cache")
    for entry in read_manifest(run.folder / "samples-64.jsonl"):
        prompt = cache.read(entry.prompts["full"])["context"]
        answer, raw = (
            ToyClip().encode_from_tokens(list(words.encode()), return_pooled=True)[0][0].to(torch.bfloat16)
            for words in (f"{entry.instruction} {DESCRIPTION}", entry.instruction)
        )
        torch.testing.assert_close(prompt, answer, rtol=0, atol=0)
        assert not torch.equal(prompt, raw)

    assert unmatched_keys(models_dir / "loras" / name, bare_kontext([base])) == []
    steps = [event for event in read_metrics(run.folder) if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 2]

    # Queued again, the translator is only loaded and the LoRA goes on.
    translator_diary = run.folder.parent / "both-translator"
    before = len(read_metrics(translator_diary))
    train(base, dataset, start, steps=3, resume="both-translator")
    assert len(read_metrics(translator_diary)) == before
    assert read_metrics(run.folder)[-1]["step"] == 3


def test_a_joint_run_that_cannot_end_well_is_refused_before_it_begins(
    models_dir: Path,
    output_dir: Path,
    lesson_parts: tuple[Path, Any, Any],
) -> None:
    base, dataset, vlm = lesson_parts
    with pytest.raises(ValueError, match="connect vlm: the joint preset teaches it"):
        train(base, dataset, None)
    with pytest.raises(ValueError, match="connect clip"):
        train(base, dataset, vlm, clip=None)
    with pytest.raises(
        ValueError, match="joint preset trains kontext for edit or generate, got kontext for all"
    ):
        train(base, dataset, vlm, task="all")
    with pytest.raises(ValueError, match="no samples for task 'generate'"):
        train(base, dataset, vlm, task="generate")
    (models_dir / "vlm" / "both-translator").mkdir()
    with pytest.raises(
        ValueError, match=r"models/vlm/both-translator exists and no run of that name made it"
    ):
        train(base, dataset, vlm)
    assert not list((output_dir / "dreamomni" / "training").glob("*/metrics.jsonl"))


def test_a_translator_that_answers_without_tags_is_named_with_its_request() -> None:
    from pack.nodes.training_encoders import ClipPrompts, RewrittenPrompts
    from pack.vlm.generate import Reply
    from pack.vlm.reply import ReplyFormatError

    class Chatty:
        identity, picture_side = "chatty", 1024

        def generate_text(self, *request: Any) -> Reply:
            return Reply(text="Sure, a picture!", num_tokens=4, complete=True)

    prompts, picture = RewrittenPrompts(ClipPrompts(ToyClip()), Chatty()), Image.new("RGB", (8, 8))
    with pytest.raises(ReplyFormatError, match=r"asked: 'Make it red. It is editing task.'. Teach the trans"):
        prompts("Make it red.", [picture])
    Chatty.generate_text = lambda self, *request: Reply(text="<edit>Make", num_tokens=1, complete=False)
    with pytest.raises(ReplyFormatError, match=r"cut off by the token limit\. It was asked") as told:
        prompts("Make it red.", [picture])
    assert "Reply: '<edit>Make'" in str(told.value)
    for remedy in ("max_new_tokens", "turn rewriting off", "vlm-model"):
        assert remedy not in str(told.value), "Train LoRA has no such setting"
    generate = prompts.for_mode("generate")
    with pytest.raises(
        ReplyFormatError, match=r"asked: 'A red cat. It is generation task.'. Teach the trans"
    ):
        generate("A red cat.", [picture])
    assert generate.identity != prompts.identity and prompts.for_mode("edit") is prompts


def test_a_translator_never_takes_the_place_of_the_vlm_it_starts_from(
    models_dir: Path,
    output_dir: Path,
    tmp_path: Path,
    vlm_folder: Callable[[str], Path],
) -> None:
    from pack.model_loaders.vlm import load_vlm
    from pack.nodes.training_folders import runs_root
    from pack.nodes.training_translator import TrainVLM
    from pack.training.checkpoint import RunState, save_checkpoint
    from pack.training.dataset import open_dataset

    (models_dir / "vlm" / "mine").symlink_to(vlm_folder("qwen2_5_vl"), target_is_directory=True)
    vlm = load_vlm(models_dir / "vlm" / "mine", "fp32")
    dataset = open_dataset(described_pairs(tmp_path / "data"))
    with pytest.raises(ValueError, match="models/vlm/mine exists and no run of that name made it"):
        TrainVLM.execute(vlm=vlm, dataset=dataset, run_name="mine")
    save_checkpoint(runs_root() / "mine" / "checkpoints", RunState(step=1, tensors={}, data={}))
    with pytest.raises(ValueError, match="run 'mine' would overwrite the VLM it starts from"):
        TrainVLM.execute(vlm=vlm, dataset=dataset, run_name="mine")

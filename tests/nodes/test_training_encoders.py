"""What a run learns from is what inference gives the network: one encoding, held against the node's."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.nodes.test_training_nodes import ToyClip, ToyVae

pytestmark = pytest.mark.host

INSTRUCTION = "put the hat of picture 2 on the cat"


def noise_picture(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_frozen_vlms_cache_holds_what_vlm_encode_gives(
    tmp_path: Path, vlm_folder: Callable[[str], Path]
) -> None:
    from pack.dit.references import ReferenceSet, Task
    from pack.model_loaders.vlm import load_vlm
    from pack.nodes.pictures import image_of
    from pack.nodes.training_encoders import picture_encoder, prompt_encoder
    from pack.nodes.vlm import VLMEncode
    from pack.training.cache import TensorCache
    from pack.training.config import RunConfig
    from pack.training.dataset import EditSample
    from pack.training.encode import Encoding, resized
    from pack.training.families import load_family

    config = RunConfig(name="x", family="dreamomni", task="all", adapter=None, options={"preset": "tiny"})
    plan = load_family("dreamomni").encode_plan(config)
    vlm = load_vlm(vlm_folder("qwen2_vl"), "fp32")
    cache = TensorCache(tmp_path / "cache")
    work = Encoding(
        config=config,
        plan=plan,
        resolution=64,
        cache=cache,
        encode_picture=picture_encoder(config, plan, None),
        encode_prompt=prompt_encoder(plan, None, vlm, None),
    )
    sample = EditSample(
        source=noise_picture(100, 60, 1),
        references=(noise_picture(48, 90, 2),),
        instruction=INSTRUCTION,
        task="add",
        target=noise_picture(100, 60, 3),
        mask=None,
        id="0",
    )
    pictures = [sample.source, *sample.references]
    sizes = work.sizes(sample)[1]
    assert sizes[0] != sizes[1] and pictures[0].size != sizes[0]
    seen = [image_of(resized(picture, size)) for picture, size in zip(pictures, sizes, strict=True)]

    with torch.inference_mode():
        kept = cache.read(work.sample(sample).prompts["full"])
        encoded = VLMEncode.execute(vlm, INSTRUCTION, ReferenceSet(Task.EDIT, tuple(seen)))
    ((tokens, extras),) = encoded.args[0]
    assert torch.equal(kept["tokens"], tokens[0].to(torch.bfloat16))
    assert torch.equal(kept["attention_mask"].bool(), extras["attention_mask"][0])
    assert torch.equal(kept["image_index"], extras["dreamomni_image_index"][0])
    assert kept["image_index"].unique().tolist() == [0, 1, 2]


class WatchingTranslator:
    """A VLM that keeps what it was shown."""

    identity = "watching"

    def __init__(self, picture_side: int = 1024) -> None:
        self.picture_side = picture_side
        self.shown: list[list[torch.Tensor]] = []

    def generate_text(self, text: str, images: Sequence[torch.Tensor], *rest: Any) -> Any:
        from pack.vlm.generate import Reply

        self.shown.append(list(images))
        return Reply(text="<edit>Put it on.</edit>", num_tokens=4, complete=True)


def same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


class OneSample:
    """A dataset of one edit with a reference."""

    def __init__(self) -> None:
        from pack.training.dataset import EditSample

        self.sample = EditSample(
            source=noise_picture(160, 96, 1),
            references=(noise_picture(48, 96, 2),),
            instruction=INSTRUCTION,
            task="add",
            target=noise_picture(160, 96, 3),
            mask=None,
            id="0",
        )

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return self.sample

    def record(self, index: int) -> Any:
        return self.sample

    def asked(self, resize: str) -> Any:
        """Its pictures as Reference Images hands them to Rewrite Prompt."""
        from pack.dit.references import ResizeRule, Task, build_references
        from pack.nodes.pictures import image_of

        pictures = [image_of(picture) for picture in (self.sample.source, *self.sample.references)]
        return build_references(Task.EDIT, ResizeRule(resize), pictures)


class ReadyError(Exception):
    """What the VLM is about to read."""


@pytest.mark.parametrize("resize", ["kontext", "none"])
@pytest.mark.parametrize(("side", "references"), [(64, 0), (512, 0), (96, 80), (1024, 0), (2048, 0)])
def test_a_taught_translator_reads_in_use_what_it_was_taught_with(
    output_dir: Path,
    tmp_path: Path,
    vlm_folder: Callable[[str], Path],
    side: int,
    references: int,
    resize: str,
) -> None:
    """The same tokens, picture grid and pixels, from the dataset's pictures and from a graph's."""
    from pack.model_loaders.vlm import load_vlm
    from pack.nodes import vlm as nodes
    from pack.nodes.training_job import make_job
    from pack.training.cache import TensorCache
    from pack.training.encode import read_manifest
    from pack.training.export import public_recipe
    from pack.training.presets import Overrides, vlm_run

    folder, data = vlm_folder("qwen2_5_vl"), OneSample()
    chosen = Overrides(resolution=side)
    config = vlm_run(name="x", folder=str(folder), chosen=chosen, full=False, seed=0)
    config = dataclasses.replace(config, reference_resolution=references)
    job = make_job(config, data, vlm=load_vlm(folder, "fp32"))
    job.place.cache.mkdir(parents=True)
    job.encode(config)
    (entry,) = read_manifest(job.place.manifest(side))
    taught = TensorCache(job.place.cache).read(entry.prompts["full"])

    shutil.copytree(folder, tmp_path / "taught")
    facts = {"dreamomni.family": "vlm", "dreamomni.recipe": json.dumps(public_recipe(config))}
    (tmp_path / "taught" / "dreamomni.json").write_text(json.dumps(facts))
    vlm = load_vlm(tmp_path / "taught", "fp32")

    def ready(request: dict[str, torch.Tensor], new_tokens: int) -> None:
        raise ReadyError(request)

    vlm.make_ready = ready
    with pytest.raises(ReadyError) as stopped:
        nodes.ask_vlm(nodes.RewritePrompt, vlm, data.asked(resize), INSTRUCTION, 64)
    (asked,) = stopped.value.args
    assert len(taught["image_grid_thw"]) == 2
    for name in ("image_grid_thw", "pixel_values"):
        assert torch.equal(taught[name], asked[name]), name
    length = asked["input_ids"].shape[1]
    assert torch.equal(taught["input_ids"][:length], asked["input_ids"][0])


@pytest.mark.parametrize("resize", ["kontext", "none"])
@pytest.mark.parametrize("side", [1024, 512])
def test_a_loras_translator_is_shown_what_rewrite_prompt_shows_it(
    output_dir: Path, monkeypatch: pytest.MonkeyPatch, resize: str, side: int
) -> None:
    from pack.nodes import vlm as nodes
    from pack.nodes.training_job import make_job
    from pack.training.config import RunConfig, StageConfig
    from pack.vlm.rewrite import ReplyCache

    vlm, data = WatchingTranslator(side), OneSample()
    stages = tuple(StageConfig(resolution=side) for side in (64, 96))
    config = RunConfig(name="x", family="kontext", task="edit", stages=stages, reference_resolution=64)
    job = make_job(config, data, clip=ToyClip(), vae=ToyVae(), vlm=vlm)
    job.place.cache.mkdir(parents=True)
    job.encode(config)
    assert len(vlm.shown) == 1, "an answer holds for every size that the LoRA is trained at"

    monkeypatch.setattr(nodes, "REPLIES", ReplyCache())
    nodes.ask_vlm(nodes.RewritePrompt, vlm, data.asked(resize), INSTRUCTION, 64)
    trained, asked = vlm.shown
    sizes = {1024: [(800, 1328), (1456, 720)], 512: [(400, 664), (728, 360)]}
    assert [tuple(image.shape[1:3]) for image in trained] == sizes[side]
    assert same(trained, asked)


def test_answers_about_pictures_of_other_sizes_are_not_found_again() -> None:
    from pack.nodes.training_encoders import ClipPrompts, RewrittenPrompts
    from pack.training.cache import content_key

    inner = ClipPrompts(ToyClip())
    known = {RewrittenPrompts(inner, WatchingTranslator(side)).identity for side in (1024, 512)}
    for marks in (["rewritten"], ["rewritten", "in_bucket"]):  # of earlier versions
        known.add(content_key(*marks, "watching", "edit", inner.identity))
    assert len(known) == 4

"""What a run learns from is what inference gives the network: one encoding, held against the node's."""

from __future__ import annotations

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

    def __init__(self) -> None:
        self.shown: list[list[torch.Tensor]] = []

    def generate_text(self, text: str, images: Sequence[torch.Tensor], *rest: Any) -> Any:
        from pack.vlm.generate import Reply

        self.shown.append(list(images))
        return Reply(text="<edit>Put it on.</edit>", num_tokens=4, complete=True)


def same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("resize", ["kontext", "none"])
def test_a_loras_translator_is_shown_what_rewrite_prompt_shows_it(
    output_dir: Path, monkeypatch: pytest.MonkeyPatch, resize: str
) -> None:
    from pack.dit.references import ResizeRule, Task, build_references
    from pack.nodes import vlm as nodes
    from pack.nodes.pictures import image_of
    from pack.nodes.training_job import make_job
    from pack.training.config import RunConfig, StageConfig
    from pack.training.dataset import EditSample
    from pack.vlm.rewrite import ReplyCache

    sample = EditSample(
        source=noise_picture(160, 96, 1),
        references=(noise_picture(48, 96, 2),),
        instruction=INSTRUCTION,
        task="add",
        target=noise_picture(160, 96, 3),
        mask=None,
        id="0",
    )

    class OneSample:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> EditSample:
            return sample

        def record(self, index: int) -> EditSample:
            return sample

    vlm = WatchingTranslator()
    stages = tuple(StageConfig(resolution=side) for side in (64, 96))
    config = RunConfig(name="x", family="kontext", task="edit", stages=stages, reference_resolution=64)
    job = make_job(config, OneSample(), clip=ToyClip(), vae=ToyVae(), vlm=vlm)
    job.place.cache.mkdir(parents=True)
    job.encode(config)
    assert len(vlm.shown) == 1, "an answer holds for every size that the LoRA is trained at"

    monkeypatch.setattr(nodes, "REPLIES", ReplyCache())
    pictures = [image_of(picture) for picture in (sample.source, *sample.references)]
    nodes.ask_vlm(
        nodes.RewritePrompt, vlm, build_references(Task.EDIT, ResizeRule(resize), pictures), INSTRUCTION, 64
    )
    trained, asked = vlm.shown
    assert [tuple(image.shape[1:3]) for image in trained] == [(800, 1328), (1456, 720)]
    assert same(trained, asked)


def test_answers_about_pictures_of_other_sizes_are_not_found_again() -> None:
    from pack.nodes.training_encoders import ClipPrompts, RewrittenPrompts
    from pack.training.cache import content_key

    inner = ClipPrompts(ToyClip())
    before = content_key("rewritten", "watching", "edit", inner.identity)
    assert RewrittenPrompts(inner, WatchingTranslator()).identity != before

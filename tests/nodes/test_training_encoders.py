"""What a run learns from is what inference gives the network: one encoding, held against the node's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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

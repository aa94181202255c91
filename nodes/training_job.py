"""A run together with the connected models that encode for it."""

from __future__ import annotations

from typing import Any

from ..training.config import RunConfig
from ..training.dataset import EditDataset
from ..training.families import load_family
from .training_encoders import RewrittenPrompts, picture_encoder, prompt_encoder
from .training_run import Job


def make_job(
    config: RunConfig,
    dataset: EditDataset,
    *,
    clip: Any = None,
    vae: Any = None,
    vlm: Any = None,
    processor: Any = None,
    processes: int = 1,
) -> Job:
    """A run with the connected encoders; a VLM beside a text encoder rewrites the prompts first."""
    family = load_family(config.family)
    plan = family.encode_plan(config)
    prompts = prompt_encoder(plan, clip, vlm, processor)
    rewrites = vlm is not None and family.reads_translations
    if rewrites:
        prompts = RewrittenPrompts(prompts, vlm)
    return Job(
        config=config,
        dataset=dataset,
        encode_picture=picture_encoder(config, plan, vae),
        encode_prompt=prompts,
        rewrites=rewrites,
        processes=processes,
    )

"""The FLUX.1 workflows give T5 sequences of 512 tokens, as DreamOmni2 has them; ComfyUI alone makes 256."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from live_server import WORKFLOWS, read_workflow
from workflow_nodes import run_nodes

pytestmark = pytest.mark.host

LOADER, OPTIONS = "DualCLIPLoader", "T5TokenizerOptions"
PUBLISHED_LENGTH, HOST_LENGTH = 512, 256
SHORT_PROMPT = "Give the dog the hat of the second image."


def has_flux_text_encoders(name: str) -> bool:
    return any(node["type"] == LOADER for node in read_workflow(name)["nodes"])


@pytest.fixture(scope="module")
def clip() -> Any:
    """The host's own Flux tokenizer and text encoders, small."""
    from standin_nodes import tiny_flux_clip

    return tiny_flux_clip(24, 16)


def t5_length(clip: Any, prompt: str = SHORT_PROMPT) -> int:
    (tokens,) = clip.tokenize(prompt)["t5xxl"]
    return len(tokens)


def lengthened(clip: Any) -> Any:
    from comfy_extras.nodes_cond import T5TokenizerOptions

    return T5TokenizerOptions.execute(clip, 0, PUBLISHED_LENGTH).args[0]


def test_there_are_workflows_to_look_at() -> None:
    assert len(list(filter(has_flux_text_encoders, WORKFLOWS))) >= 9


@pytest.mark.parametrize("name", filter(has_flux_text_encoders, WORKFLOWS))
def test_everything_that_uses_the_clip_of_a_workflow_gets_512_tokens(name: str, clip: Any) -> None:
    from comfy_extras.nodes_cond import T5TokenizerOptions

    workflow = read_workflow(name)
    kinds = {node["id"]: node["type"] for node in workflow["nodes"]}
    wires = [(kinds[link[1]], kinds[link[3]]) for link in workflow["links"] if link[5] == "CLIP"]
    assert {end for start, end in wires if start == LOADER} == {OPTIONS}
    assert [end for start, end in wires if start == OPTIONS]

    results = {LOADER: (clip,)}
    run_nodes(name, {OPTIONS: T5TokenizerOptions}, results)
    assert t5_length(clip) == HOST_LENGTH
    assert t5_length(results[OPTIONS][0]) == PUBLISHED_LENGTH


def test_long_prompts_are_not_cut(clip: Any) -> None:
    assert t5_length(lengthened(clip), "dog " * 600) > 600


def test_prompts_to_train_on_are_as_long_and_never_taken_from_a_cache_of_shorter_ones(clip: Any) -> None:
    from pack.nodes.training_encoders import ClipPrompts
    from pack.training.cache import prompt_key

    with torch.inference_mode():
        short, long = ClipPrompts(clip), ClipPrompts(lengthened(clip))
        assert len(short(SHORT_PROMPT, [])["context"]) == HOST_LENGTH
        assert len(long(SHORT_PROMPT, [])["context"]) == PUBLISHED_LENGTH
        again = ClipPrompts(lengthened(clip))
    keys = [prompt_key(SHORT_PROMPT, [], prompts.identity) for prompts in (short, long, again)]
    assert keys[0] != keys[1] == keys[2]

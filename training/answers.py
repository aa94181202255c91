"""What a prompt translator is taught: instruction and pictures in, one tagged standard answer out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..vlm.chat import rewrite_request
from ..vlm.inputs import build_inputs
from .dataset import EditSample
from .synthesis.words import with_article

ANSWER_TAGS = {"edit": "edit", "generate": "gene"}
"""DreamOmni2 cuts 6 and 7 characters off the answer; which tags it uses is chosen, not published."""
NOT_LEARNT = -100
ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")


def place_words(x: float, y: float) -> str:
    """Where a point (fractions of the canvas) lies, in thirds."""
    row, column = ROWS[min(2, int(y * 3))], COLUMNS[min(2, int(x * 3))]
    if row == "middle":
        return "in the centre" if column == "centre" else f"on the {column}"
    return f"at the {row} {'centre' if column == 'centre' else column}"


def target_words(scene: dict[str, Any] | None) -> str:
    """The wanted picture in words: the scene's `description`, or what its target holds; or nothing."""
    if not scene:
        return ""
    if isinstance(scene.get("description"), str):
        return scene["description"].strip()
    objects = (scene.get("target") or {}).get("objects", [])
    phrases = []
    for item in objects:
        sprite = item["sprite"]
        look = [sprite.get("colour"), sprite.get("texture") if sprite.get("texture") != "plain" else None]
        noun = " ".join([*(word for word in look if word), sprite["shape"]])
        phrases.append(f"{with_article(noun)} {place_words(item['x'], item['y'])}")
    return f"The picture shows {', '.join(phrases)}." if phrases else ""


def standard_answer(sample: EditSample) -> str:
    """DreamOmni2's format: for an edit instruction and described result, else the description alone."""
    described = target_words(sample.scene)
    instruction = sample.instruction.strip()
    both = f"{instruction} {described}".strip()
    words = both if sample.mode == "edit" else described or instruction
    tag = ANSWER_TAGS[sample.mode]
    return f"<{tag}>{words}</{tag}>"


def lesson(sample: EditSample) -> str:
    """Request and answer of a sample as one line of JSON, the text that `AnswerEncoder` encodes."""
    request = rewrite_request(sample.instruction, sample.mode)
    return json.dumps({"request": request, "answer": standard_answer(sample)})


class AnswerEncoder:
    """Tokens of a chat turn with its answer; only the answer is learnt."""

    def __init__(self, processor: Any, identity: str) -> None:
        self.processor, self.identity = processor, f"answers {identity}"

    def __call__(self, prompt: str, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """input_ids, labels, mm_token_type_ids (L,) and, with pictures, pixel_values and image_grid_thw."""
        words = json.loads(prompt)
        inputs = build_inputs(self.processor, words["request"], images)
        tokenizer = self.processor.tokenizer
        answer = [*tokenizer(words["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        asked, learnt = inputs["input_ids"][0], torch.tensor(answer)
        silent = torch.full_like(asked, NOT_LEARNT)
        kinds = inputs["mm_token_type_ids"][0]
        encoded = {
            "input_ids": torch.cat([asked, learnt]),
            "labels": torch.cat([silent, learnt]),
            "mm_token_type_ids": torch.cat([kinds, torch.zeros_like(learnt, dtype=kinds.dtype)]),
        }
        return encoded | {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}


def no_latent(image: Image.Image) -> Tensor:
    """A language model's sample has no latent: one zero, (1, 1, 1), stands in for it."""
    return torch.zeros(1, 1, 1)

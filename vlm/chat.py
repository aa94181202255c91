"""What is said to the VLM: instruction, task suffix and pictures as one chat turn.

The user's words are data. Text that spells one of the tokenizer's own tokens (`<|im_end|>`, ...) is
tokenised as plain letters, so it can neither end the turn nor stand for a picture.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any

# DreamOmni2 was tuned with exactly these words behind every instruction; the tasks' instructions look alike.
TASK_SUFFIXES = {"edit": " It is editing task.", "generate": " It is generation task."}
# Stands for the user's words while a chat template is rendered; a private-use character no template contains.
USER_TEXT = "\ue0d2"
TEMPLATES = ("chat", "plain")


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """The fixed text around the user's words, pictures written as one placeholder token each."""

    before: str
    after: str


def rewrite_request(instruction: str, task: str) -> str:
    """The text DreamOmni2's VLM was tuned to answer: the instruction and the task's suffix.

    Raises ValueError for an empty instruction or an unknown task.
    """
    if task not in TASK_SUFFIXES:
        raise ValueError(f"unknown task {task!r}; choose one of {', '.join(TASK_SUFFIXES)}.")
    if not instruction.strip():
        raise ValueError(
            "the instruction is empty; say what to make of the pictures, "
            'for example "Replace the bag in the first image with the bag in the second image."'
        )
    return instruction + TASK_SUFFIXES[task]


def chat_frame(processor: Any, num_images: int) -> Frame:
    """The folder's own chat template around one user turn: pictures, then the words, then the answer."""
    content = [{"type": "image"}] * num_images + [{"type": "text", "text": USER_TEXT}]
    rendered = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    pieces = rendered.split(USER_TEXT)
    placeholders = rendered.count(processor.image_token)
    if len(pieces) != 2 or placeholders != num_images:
        raise ValueError(
            f"the chat template of this VLM folder writes the instruction {len(pieces) - 1} times and "
            f"{placeholders} pictures for {num_images}; it must write each once. "
            "Use the chat template of the Qwen-VL release (chat_template.json or .jinja) in the folder."
        )
    return Frame(before=pieces[0], after=pieces[1])


def plain_frame(processor: Any, num_images: int) -> Frame:
    """Pictures between their vision marks, then the words, without a chat turn."""
    return Frame(before=f"<|vision_start|>{processor.image_token}<|vision_end|>" * num_images, after="")


def frame_of(processor: Any, num_images: int, template: str) -> Frame:
    """The frame of a named template; raises ValueError for an unknown name."""
    if template == "chat":
        return chat_frame(processor, num_images)
    if template == "plain":
        return plain_frame(processor, num_images)
    raise ValueError(f"unknown template {template!r}; choose one of {', '.join(TEMPLATES)}.")


def tokenize_user_text(tokenizer: Any, before: str, text: str, after: str) -> list[int]:
    """Token ids of `before + text + after`; a token spelled out inside `text` is letters, not that token."""
    whole = before + text + after
    cuts = [0, *cut_points(tokenizer, whole, len(before), len(before) + len(text)), len(whole)]
    pieces = [whole[start:end] for start, end in itertools.pairwise(cuts)]
    encoded = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces if piece]
    return [token for ids in encoded for token in ids]


def cut_points(tokenizer: Any, whole: str, start: int, end: int) -> list[int]:
    """Where to cut `whole` so that no added token within [start, end) survives: behind its first letter."""
    names: list[str] = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    if not names:
        return []
    pattern = re.compile("|".join(re.escape(name) for name in names))
    cuts, position = [], start
    while match := pattern.search(whole, position, end):
        position = match.start() + 1
        cuts.append(position)
    return cuts

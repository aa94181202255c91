"""Text and pictures to the tensors a Qwen2-VL or Qwen2.5-VL model reads.

B is 1 here, L tokens, P picture patches; every picture takes as many tokens as it has merged patches.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from .chat import frame_of, tokenize_user_text

EMPTY_TEXT = " "


def build_inputs(
    processor: Any, text: str, pictures: Sequence[Image.Image], template: str = "chat"
) -> dict[str, Tensor]:
    """Model inputs of one request: what `apply_chat_template(tokenize=True)` returns, the text held as data.

    Keys: input_ids, attention_mask, mm_token_type_ids (1, L) and, with pictures, pixel_values (P, C) and
    image_grid_thw (n, 3).
    """
    frame = frame_of(processor, len(pictures), template)
    images: dict[str, Tensor] = {}
    before = frame.before
    if pictures:
        images = dict(processor.image_processor(images=list(pictures), return_tensors="pt"))
        before = spread_placeholders(
            before, processor.image_token, tokens_per_image(processor, images["image_grid_thw"])
        )
    words = tokenize_user_text(processor.tokenizer, before, text, frame.after)
    ids = torch.tensor([words]) if words else empty_ids(processor.tokenizer)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        # Without these Qwen places picture tokens on a line instead of a grid, and says nothing.
        "mm_token_type_ids": (ids == image_token_id(processor)).int(),
        **images,
    }


def empty_ids(tokenizer: Any) -> Tensor:
    """Ids (1, L) that stand for no text and no pictures where a template adds nothing: those of a space.

    Chosen, not published; a model cannot read 0 tokens. Raises ValueError if a space is none either.
    """
    ids = tokenizer(EMPTY_TEXT, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError(
            "the prompt is empty and this VLM's tokenizer has no token for a space; write a word, or choose "
            "the template 'chat'."
        )
    return torch.tensor([ids], dtype=torch.long)


def accepted_inputs(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """`inputs` without mm_token_type_ids for transformers 4, whose models find the pictures themselves."""
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        return inputs
    return {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}


def image_token_id(processor: Any) -> int:
    """Id of the token that stands for one merged patch of a picture."""
    return processor.tokenizer.convert_tokens_to_ids(processor.image_token)


def tokens_per_image(processor: Any, grid: Tensor) -> list[int]:
    """Tokens each picture takes, from its patch grid (n, 3) of frames, rows and columns."""
    return (grid.prod(-1) // processor.image_processor.merge_size**2).tolist()


def spread_placeholders(text: str, token: str, counts: Sequence[int]) -> str:
    """`text` with its k-th `token` repeated counts[k] times."""
    pieces = text.split(token)
    spread = [piece + token * count for piece, count in zip(pieces[:-1], counts, strict=True)]
    return "".join(spread) + pieces[-1]


def image_index(ids: Tensor, token: int, counts: Sequence[int]) -> Tensor:
    """Which picture each token (B, L) belongs to, counted from 1; 0 is text."""
    index = torch.zeros_like(ids)
    owners = torch.repeat_interleave(
        torch.arange(1, len(counts) + 1), torch.tensor(list(counts), dtype=torch.long)
    )
    index[ids == token] = owners.to(ids)
    return index

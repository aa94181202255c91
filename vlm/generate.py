"""Greedy generation that reports every token and refuses numbers that overflowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What the VLM wrote; `complete` is False when the token limit cut it off."""

    text: str
    num_tokens: int
    complete: bool


@dataclass(slots=True)
class TokenStream:
    """Collects tokens as they are made; the streamer interface of transformers' `generate`."""

    tokenizer: Any
    on_token: Callable[[TokenStream], None]
    tokens: list[int] = field(default_factory=list)
    seen_prompt: bool = False

    def put(self, value: Tensor) -> None:
        """Take the prompt (first call) or the next token; whatever `on_token` raises ends the generation."""
        if not self.seen_prompt:
            self.seen_prompt = True
        else:
            self.tokens += value.reshape(-1).tolist()
        self.on_token(self)

    def end(self) -> None:
        """Nothing is left to flush."""

    def text(self) -> str:
        """Everything written so far, special tokens left out."""
        return self.tokenizer.decode(
            self.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def refuse_overflow(_: Tensor, scores: Tensor) -> Tensor:
    """Logits processor: raise ValueError instead of choosing a token from NaN or infinite scores."""
    if not bool(torch.isfinite(scores.max())):
        raise ValueError(
            "the VLM's scores are not finite: its numbers overflow in this precision. "
            "Choose bf16, fp32 or auto in the VLM loader."
        )
    return scores


def generate_reply(
    model: Any,
    tokenizer: Any,
    inputs: dict[str, Tensor],
    max_new_tokens: int,
    on_token: Callable[[TokenStream], None] = lambda stream: None,
) -> Reply:
    """The VLM's greedy answer to `inputs`, as DreamOmni2 asks it, at most `max_new_tokens` long."""
    stream = TokenStream(tokenizer, on_token)
    output = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        streamer=stream,
        logits_processor=[refuse_overflow],
    )
    new = output[0, inputs["input_ids"].shape[1] :].tolist()
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    stream.tokens = new
    return Reply(text=stream.text(), num_tokens=len(new), complete=bool(new) and new[-1] in ends)

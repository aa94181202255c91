"""OmniGen's tokenizer, read from tokenizer.json alone so that no transformers release can change its ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from ..dit.omnigen.config import OmniGenConfig
from ..dit.omnigen.prefix import TokenSequence
from ..dit.omnigen.prompt import tagged_prompt, tokenize_prompt
from ..dit.omnigen.resolution import TOKEN_PIXELS

NEEDED_WORDS = ("<|user|>", "<|end|>", "<|assistant|>")
START = "<s>"


@dataclass(frozen=True, slots=True)
class OmniGenProcessor:
    """Prompts with picture tags to token ids; one per loaded model."""

    tokenizer: Tokenizer
    config: OmniGenConfig
    start_token: int | None
    """Put in front of every prompt; None for a tokenizer without."""

    def encode(self, text: str, first: bool) -> list[int]:
        """Ids of a piece of text, behind the start token if it is the prompt's first piece."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [self.start_token, *ids] if first and self.start_token is not None else ids

    def tokenize(
        self, prompt: str, image_sizes: Sequence[tuple[int, int]], target_tokens: int = 0
    ) -> TokenSequence:
        """Ids and slots of a prompt with pictures of those (height, width) in px.

        Raises ValueError on wrong tags, and when text, pictures and a target of `target_tokens` together are
        longer than the model's positions.
        """
        counts = [height * width // TOKEN_PIXELS**2 for height, width in image_sizes]
        tokens = tokenize_prompt(prompt, counts, self.encode)
        total = len(tokens.token_ids) + 1 + target_tokens
        if total > self.config.max_position_embeddings:
            raise ValueError(
                f"the prompt is too long: {len(tokens.token_ids)} tokens with its pictures and "
                f"{target_tokens} of the result make {total}, the model reaches "
                f"{self.config.max_position_embeddings}. Shorten the text or use smaller pictures."
            )
        return tokens

    def training_entry(self, prompt: str, image_sizes: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """What the training cache keeps of a prompt: `ids` (L,) int64 with -k in the slots of picture k.

        Unlike in `tokenize`, pictures the prompt does not name get their tags in front.
        """
        return {"ids": self.tokenize(tagged_prompt(prompt, len(image_sizes)), image_sizes).as_tensor()[0]}


def load_processor(tokenizer_file: Path, config: OmniGenConfig) -> OmniGenProcessor:
    """The processor of a model; ValueError if the tokenizer belongs to another one."""
    text = tokenizer_file.read_text("utf-8")
    try:
        readable = "model" in json.loads(text)
    except ValueError:
        readable = False
    if not readable:
        raise ValueError(f"{tokenizer_file} is not a readable tokenizer.json; download it again")
    tokenizer = Tokenizer.from_str(text)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    missing = [word for word in (*NEEDED_WORDS, START) if tokenizer.token_to_id(word) is None]
    if missing or size > config.vocab_size:
        raise ValueError(
            f"{tokenizer_file} is the tokenizer of another model: "
            + (f"it does not know {', '.join(missing)}" if missing else f"it has {size} words")
            + f"; this model has {config.vocab_size} and needs OmniGen's own tokenizer.json"
        )
    settings = tokenizer_file.with_name("tokenizer_config.json")
    fields = json.loads(settings.read_text("utf-8")) if settings.is_file() else {}
    # Llama tokenizers put <s> in front unless their settings say otherwise; the authors' processor keeps it.
    start = tokenizer.token_to_id(START) if fields.get("add_bos_token", True) else None
    return OmniGenProcessor(tokenizer, config, start)

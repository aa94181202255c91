"""A word-level tokenizer for the instructions of the sticker pipeline.

Every word the pipeline can write is one token, a number of a drag prompt is one token with two decimals, and
anything else is spelled letter by letter, so no text is unknown. Chosen, not published.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from typing import Any

from ...dit.dreamomni.drag import VERBS
from ..synthesis import naming
from ..synthesis.palette import BACKGROUNDS, COLOURS, MARK_COLOURS
from ..synthesis.shapes import SHAPES
from ..synthesis.tasks.drag import ANGLES, FACTORS
from ..synthesis.templates import POLITE, TEMPLATES
from ..synthesis.textures import TEXTURES
from ..synthesis.words import ORDINALS

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
UNKNOWN = "<|unknown|>"
CONTINUED = "##"
WORD = r"[a-z]+(?:-[a-z]+)*"
DROPPED_DIGITS = r"(?<=\d\.\d\d)\d+"
"""A hundredth of the side is a third of a pixel at 32 px: finer digits of drag points are not read."""
DROPPED_MARKS = r"[(),\s]+"
PIECES = rf"-?\d+\.\d\d|{WORD}|\d+|."
SLOT = re.compile(r"\{\w*\}")

OTHER_WORDS = """
    a an and the of it its is to in on at by from all there picture image figure reference given provided
    left right middle upper lower top bottom centre corner part side above below directly background that
    fades colour pattern material surface finish design small little large big degrees clockwise
    counter-clockwise anticlockwise percent
"""
"""What naming, captions and drag words add to the tables; a test holds this list against drawn samples."""


def pipeline_words() -> list[str]:
    """Every word of the pipeline's tables, sorted."""
    texts: list[str] = [OTHER_WORDS, *ORDINALS, *POLITE, *SHAPES, *TEXTURES]
    texts += [*COLOURS, *BACKGROUNDS, *MARK_COLOURS]
    texts += [template for templates in TEMPLATES.values() for template in templates]
    texts += [word for words in FACTORS.values() for word in words]
    texts += [word for words in naming.SIZE_WORDS.values() for word in words]
    texts += [verb for verbs in VERBS.values() for verb in verbs]
    return sorted(set(re.findall(WORD, " ".join(SLOT.sub(" ", text) for text in texts).lower())))


def number_words() -> list[str]:
    """Shares with two decimals of both signs, and the whole numbers of the templates."""
    shares = [f"{sign}{value / 100:.2f}" for sign in ("", "-") for value in range(101)]
    return [*shares, *(str(number) for number in (*range(10), *ANGLES, 50, 75, 150, 200))]


def vocabulary(words: Iterable[str]) -> dict[str, int]:
    """Token -> id: special tokens, words, then letters for everything else."""
    letters = [letter for letter in string.printable.lower() if not letter.isspace()]
    spelled = [*letters, *(CONTINUED + letter for letter in letters)]
    tokens = dict.fromkeys([*SPECIAL, UNKNOWN, *words, *spelled])
    return {token: number for number, token in enumerate(tokens)}


def build_tokenizer() -> Any:
    """The tokenizer (a `tokenizers.Tokenizer`), the same on every machine."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    table = vocabulary([*pipeline_words(), *number_words()])
    tokenizer = Tokenizer(models.WordPiece(table, unk_token=UNKNOWN, continuing_subword_prefix=CONTINUED))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(DROPPED_DIGITS), "removed"),
            pre_tokenizers.Split(Regex(DROPPED_MARKS), "removed"),
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUED, cleanup=False)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return tokenizer

"""English small print: articles, order words, lists and sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")

SOUNDS_LIKE_CONSONANT = re.compile(
    r"(?:uni(?!n)|us[aeiu]|ut[ie]|eu|ewe|one\b|once\b|ukulele|ufo\b)", re.IGNORECASE
)
SOUNDS_LIKE_VOWEL = re.compile(
    r"(?:hour|honest|honou?r|heir|[fhlmnrsx]-|x-ray|mri\b|8|11\b|18\b)", re.IGNORECASE
)


def article(words: str) -> str:
    """`a` or `an`, by the sound of the first word."""
    if SOUNDS_LIKE_VOWEL.match(words):
        return "an"
    return "an" if words[:1].lower() in "aeiou" and not SOUNDS_LIKE_CONSONANT.match(words) else "a"


def with_article(words: str) -> str:
    """`an orange star`."""
    return f"{article(words)} {words}"


def join_list(items: Sequence[str]) -> str:
    """`a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def sentence(words: str) -> str:
    """The words as a sentence: large first letter, one space between words, a full stop."""
    words = " ".join(words.split())
    words = words[:1].upper() + words[1:]
    return words if words[-1:] in ".!?" else words + "."

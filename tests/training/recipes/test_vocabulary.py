"""The small model's tokenizer: every word of the pipeline whole, everything else spelled, nothing unknown."""

from __future__ import annotations

import re

import pytest
from pack.training.recipes.vocabulary import (
    CONTINUED,
    DROPPED_DIGITS,
    DROPPED_MARKS,
    PIECES,
    SPECIAL,
    UNKNOWN,
    build_tokenizer,
    pipeline_words,
)
from pack.training.synthesis.config import TASK_WEIGHTS, SynthesisConfig, recipe_for
from pack.training.synthesis.samples import Synthesizer
from pack.training.synthesis.templates import TEMPLATES


def plain_words(text: str) -> list[str]:
    """The words and numbers of a text as the tokenizer splits it."""
    short = re.sub(DROPPED_DIGITS, "", text.lower())
    return re.findall(PIECES, re.sub(DROPPED_MARKS, " ", short).replace(" ", "\n"))


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.mark.parametrize("kind", TEMPLATES)
def test_every_template_comes_back_whole(tokenizer, kind: str) -> None:
    for template in TEMPLATES[kind]:
        slots = {name: "red star" for name in ("old", "new", "place", "colour", "a_colour", "texture")}
        slots |= {name: "blue ring" for name in ("a_texture", "surface", "goal", "factor", "share", "angle")}
        slots |= {name: "image" for name in ("sense", "caption", "first", "other", "subject", "attribute")}
        slots |= {"items": "a moon", "background": "on a sand background"}
        text = template.format(**slots)
        encoded = tokenizer.encode(text)
        assert tokenizer.decode(encoded.ids) == " ".join(plain_words(text))
        assert not [token for token in encoded.tokens if token.startswith(CONTINUED)]


@pytest.mark.parametrize("side", [32, 512])
def test_no_word_of_a_drawn_sample_is_spelled(tokenizer, side: int) -> None:
    tasks = tuple(task for task in TASK_WEIGHTS if not task.startswith("control"))
    drawn = Synthesizer(recipe_for(side, side, tasks=tasks))
    for index in range(250):
        text = drawn.plan(index).instruction
        encoded = tokenizer.encode(text)
        assert tokenizer.decode(encoded.ids) == " ".join(plain_words(text))
        assert not [token for token in encoded.tokens if token.startswith(CONTINUED)], text


def test_foreign_words_are_spelled_and_come_back(tokenizer) -> None:
    encoded = tokenizer.encode("Paint the zebra #7!")
    assert UNKNOWN not in encoded.tokens
    assert tokenizer.decode(encoded.ids) == "paint the zebra # 7 !"


def test_numbers_of_a_drag_prompt_are_one_token_each(tokenizer) -> None:
    text = "(0.8607, 0.2977, 0.0000, -0.1476). Revolve the ring."
    assert tokenizer.encode(text).tokens == [
        *("0.86", "0.29", "0.00", "-0.14", "."),
        *("revolve", "the", "ring", "."),
    ]


def test_the_vocabulary_is_the_same_every_time(tokenizer) -> None:
    assert tokenizer.to_str() == build_tokenizer().to_str()
    assert list(tokenizer.get_vocab()) and len(tokenizer.get_vocab()) < 1000
    assert all(tokenizer.token_to_id(name) == number for number, name in enumerate(SPECIAL))
    assert {"husky", "zebra"}.isdisjoint(pipeline_words())
    assert SynthesisConfig().shapes and set(SynthesisConfig().shapes) <= set(pipeline_words())

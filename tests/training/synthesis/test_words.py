"""Articles, lists and the grammar check that reads every instruction."""

from __future__ import annotations

import pytest
from grammar import grammar_faults
from pack.training.synthesis.dice import Dice
from pack.training.synthesis.scene import SceneObject, Sprite
from pack.training.synthesis.stickers import clean_noun, words_of_name
from pack.training.synthesis.tasks.generate import relative_words
from pack.training.synthesis.templates import COMMANDS, TEMPLATES
from pack.training.synthesis.words import article, join_list, sentence
from pack.training.synthesis.workshop import PLACES


def star(x: float, y: float) -> SceneObject:
    sprite = Sprite(shape="star", colour="red", texture="plain")
    return SceneObject(key=0, sprite=sprite, x=x, y=y, scale=0.3)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ((0.75, 0.75), "below and to the right of it"),
        ((0.5, 0.25), "above it"),
        ((0.25, 0.5), "to the left of it"),
    ],
)
def test_an_object_beside_the_middle_is_placed_relative_to_it(place: tuple[float, float], words: str) -> None:
    before, item = (star(*at) for at in ((0.5, 0.5), place))
    told = relative_words(item, before, Dice(1))
    assert told is not None and told.removeprefix("directly ") == words


def test_words_that_fit_two_places_are_not_used() -> None:
    for one in PLACES:
        answers: dict[str, set[tuple[float, float]]] = {}
        for two in PLACES:
            before, item = (star(*at) for at in (one, two))
            if one != two and (words := relative_words(item, before, Dice(1))):
                answers.setdefault(words.removeprefix("directly "), set()).add(two)
        assert all(len(places) == 1 for places in answers.values())
        assert ("to the right of it" in answers) == (one[0] == 0.5)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("orange star", "an"),
        ("red star", "a"),
        ("unicorn", "a"),
        ("umbrella", "an"),
        ("uninteresting face", "an"),
        ("hourglass", "an"),
        ("house", "a"),
        ("one-eyed cat", "a"),
        ("ice cream", "an"),
        ("UFO", "a"),
        ("x-ray", "an"),
        ("ukulele", "a"),
        ("European flag", "a"),
        ("eye", "an"),
    ],
)
def test_articles_follow_the_sound(words: str, expected: str) -> None:
    assert article(words) == expected


def test_lists_and_sentences() -> None:
    assert join_list(["a"]) == "a"
    assert join_list(["a", "b", "c"]) == "a, b and c"
    assert sentence("the  star is red") == "The star is red."


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Add a orange star.", "article"),
        ("Add an red star.", "article"),
        ("Add the the star.", "doubled"),
        ("Add {new}.", "placeholder"),
        ("Add a None star.", "placeholder"),
        ("Add a star .", "spacing"),
        ("Add a  star.", "spacing"),
        ("Add a star", "end"),
        ("add a star.", "capital"),
        ("Add a star. remove it.", "capital"),
    ],
)
def test_the_check_finds_each_kind_of_fault(text: str, fault: str) -> None:
    assert any(found.startswith(fault) for found in grammar_faults(text))


def test_the_check_passes_good_sentences() -> None:
    for text in (
        "Add an orange star.",
        "(0.1000, 0.2000, 0.0000, 0.0000). Move it.",
        "Could you add a star?",
    ):
        assert grammar_faults(text) == []


def test_every_task_has_at_least_four_wordings_without_doubles() -> None:
    for name, wordings in TEMPLATES.items():
        assert len(set(wordings)) == len(wordings) >= 3, name
    assert {"Add", "Remove", "Replace"} <= COMMANDS and "There" not in COMMANDS


@pytest.mark.parametrize(
    ("caption", "noun"),
    [
        ("A frog.", "frog"),
        ("An octopus; also more.", "octopus"),
        ("grapes", "picture of grapes"),
        ("Two cherries.", "picture of two cherries"),
        ("red_apple", "red apple"),
        ("cactus", "cactus"),
        ("glass of milk", "glass of milk"),
        ("USA map", "USA map"),
        ("four leaf clover", "four leaf clover"),
        ("face with spiral eyes", "face with spiral eyes"),
        ("glasses for reading", "picture of glasses for reading"),
    ],
)
def test_captions_become_singular_nouns(caption: str, noun: str) -> None:
    assert clean_noun(caption) == noun


def test_names_of_files_become_words() -> None:
    assert words_of_name("red-apple_02") == "red apple"
    assert words_of_name("001") == "sticker"


def test_dice_repeat_and_cover_their_range() -> None:
    first, second = Dice(1, 2), Dice(1, 2)
    assert [first.uniform(0, 1) for _ in range(5)] == [second.uniform(0, 1) for _ in range(5)]
    dice = Dice("x")
    assert {dice.integer(1, 3) for _ in range(100)} == {1, 2, 3}
    assert sorted(dice.shuffled([1, 2, 3])) == [1, 2, 3]
    counts = [dice.weighted({"often": 9.0, "seldom": 1.0}) for _ in range(1000)]
    assert 850 < counts.count("often") < 950
    # The stream itself is part of the promise; the number came from Python 3.11 on Linux.
    assert Dice(0, 0).integer(0, 10**6) == 584701

"""Picture tags, their errors, and the prompts built from options."""

from __future__ import annotations

import pytest
from pack.dit.omnigen.prompt import (
    NEGATIVE_PROMPT,
    WRAPPER,
    check_mentions,
    check_tags,
    few_shot_prompt,
    image_only_prompt,
    tag_mentions,
    tokenize_prompt,
)

ONE, TWO, THREE = (f"<img><|image_{number}|></img>" for number in (1, 2, 3))


def test_wrapper_and_negative_prompt_are_the_authors():
    from diffusers.pipelines.omnigen.processor_omnigen import OmniGenMultiModalProcessor

    processor = OmniGenMultiModalProcessor(None)
    assert processor.add_prefix_instruction("a cat") == WRAPPER.replace("{prompt}", "a cat")
    assert OmniGenMultiModalProcessor.__call__.__defaults__[3] == NEGATIVE_PROMPT


@pytest.mark.parametrize(
    ("prompt", "images", "message"),
    [
        ("a hat", 1, r"picture 1 is wired but <img><\|image_1\|></img> does not occur .*found: none"),
        (f"{ONE} a hat", 2, r"picture 2 is wired but"),
        (f"{ONE} and {THREE}", 3, r"picture 2 is wired but .*image_1.*image_3"),
        (f"see {TWO}", 1, r"<img><\|image_2\|></img> at character 5 .*has no picture: 1 is wired"),
        (f"see {ONE}", 0, r"at character 5 .* has no picture: 0 are wired"),
        ("<|image_1|> alone", 1, r"'<\|image_1\|>' at character 1 .*not a whole picture tag"),
        ("<img><|image_1|><|image_1|></img>", 1, r"'<img>' at character 1 .*not a whole"),
        (f"<img>{ONE}</img>", 1, r"'<img>' at character 1 "),
        (f"{ONE}</img>", 1, r"'</img>' at character 23"),
        ("<img><|image_0|></img>", 1, r"'<img>' at character 1"),
        ("<img><|image_01|></img>", 1, r"'<img>' at character 1"),
        ("stop<|end|> now", 0, r"'<\|end\|>' at character 5"),
        ("</s> now", 0, r"'</s>' at character 1"),
    ],
)
def test_tag_errors_name_the_place(prompt, images, message):
    with pytest.raises(ValueError, match=message):
        check_tags(prompt, images)


@pytest.mark.parametrize("prompt", ["Put the hat of the second image on image 1", "<|image_1|> alone"])
def test_tag_errors_name_the_style_without_tags(prompt):
    message = (
        r"or choose prompt_style 'mentions' and write image 1, image 2 "
        r"\(picture 1, photo 1 and img 1 count too, 'the first image' does not\)"
    )
    with pytest.raises(ValueError, match=message):
        check_tags(prompt, 1)
    for counted in ("image 1", "picture 1", "photo 1", "img 1"):
        check_tags(tag_mentions(counted), 1)
    assert tag_mentions("the first image") == "the first image"


def test_good_tags_pass():
    check_tags("a plain prompt, 3 < 4 and {braces}", 0)
    check_tags(f"{TWO} before {ONE}, {TWO} again", 2)


def test_a_repeated_tag_repeats_the_slot():
    tokens = tokenize_prompt(f"{ONE} a {ONE}", [3], lambda text, first: [7] * len(text))
    assert [(slot.stop - slot.start, slot.image) for slot in tokens.slots] == [(3, 0), (3, 0)]


def test_braces_in_a_prompt_are_text():
    tokens = tokenize_prompt("{0} {x}", [], lambda text, first: list(text.encode()))
    assert b"{0} {x}" in bytes(tokens.token_ids)


def test_image_only_prompt():
    assert image_only_prompt(2) == f"{ONE} {TWO}"


@pytest.mark.parametrize(
    ("words", "tags"),
    [
        ("image 1 wears the hat of Picture #2", f"{ONE} wears the hat of {TWO}"),
        (f"{ONE} beside image 2", f"{ONE} beside {TWO}"),
        ("an image of 3 cats, imagery 2", "an image of 3 cats, imagery 2"),
        ("image 10", "<img><|image_10|></img>"),
    ],
)
def test_mentions_become_tags(words, tags):
    assert tag_mentions(words) == tags


def test_a_number_above_the_limit_is_no_mention():
    words = "Turn the image 90 degrees, beside image 2"
    assert tag_mentions(words, 5) == f"Turn the image 90 degrees, beside {TWO}"
    check_mentions(words, 2, 5)


def test_a_mention_without_a_picture_is_named_as_it_was_written():
    message = r"'Image 3' at character 7 .*no picture: 1 is wired.*'mentions'"
    with pytest.raises(ValueError, match=message) as told:
        check_mentions("A cat Image 3", 1, 5)
    assert THREE in str(told.value)


def test_few_shot_prompt_is_the_published_one():
    head = "According to the following examples, generate an output for the input.\n"
    pair = f"Input: {ONE}\nOutput: {TWO}\n\nInput: {THREE}\nOutput: "
    assert few_shot_prompt("", 3) == head + pair
    assert few_shot_prompt(" Remove the dog. ", 3) == "Remove the dog.\n" + head + pair
    for count in (0, 1, 2, 4):
        with pytest.raises(ValueError, match=f"3 or 5 pictures; got {count}"):
            few_shot_prompt("", count)

"""The VLM's reply is one tagged answer or an error that shows it."""

from __future__ import annotations

import pytest
from pack.vlm.reply import ReplyFormatError, parse_reply


@pytest.mark.parametrize(
    ("reply", "prompt"),
    [
        ("<edit>Make the bag red.</edit>", "Make the bag red."),
        ("<gen>A cat\non a car.</gen>", "A cat\non a car."),
        ("\n <gene> A cat. </gene>\n", "A cat."),
        ("<refined-prompt>A cat.</refined-prompt>", "A cat."),
        # Upstream's cut of 6 and 7 characters, where both ends are tags of different names.
        ("<edit>Make it red.</gene>", "Make it red."),
        ("<edit>a < b and c > d</edit>", "a < b and c > d"),
    ],
)
def test_the_answer_between_one_pair_of_tags_is_the_prompt(reply: str, prompt: str) -> None:
    assert parse_reply(reply) == prompt


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("<edit></edit>", "empty between its tags"),
        ("<edit> \n </edit>", "empty between its tags"),
        ("Make the bag red.", "no tags around it.*vlm-model"),
        ("Sure! <edit>Make the bag red.</edit>", "not one answer between a pair of tags"),
        ("<edit>Make the bag red.", "not one answer between a pair of tags"),
        ("<edit>One.</edit><edit>Two.</edit>", "more than one pair of tags"),
        ("<edit>One <b>bold</b>.</edit>", "more than one pair of tags"),
        ("<longer>Make it red.</gene>", "not one answer"),
        # 6 and 7 characters that are no tags must not be cut off.
        ("Please make the bag red, like the dress.", "no tags around it"),
    ],
)
def test_any_other_reply_is_an_error_that_shows_it(reply: str, fault: str) -> None:
    with pytest.raises(ReplyFormatError, match=fault) as caught:
        parse_reply(reply)
    assert not reply.strip() or reply.strip()[:20] in str(caught.value).replace("\\n", "\n")


def test_a_reply_cut_by_the_limit_says_so() -> None:
    with pytest.raises(ReplyFormatError, match=r"cut off by the token limit\. Raise max_new_tokens"):
        parse_reply("<edit>Make the bag", complete=False)


def test_a_long_reply_is_shortened_in_the_message() -> None:
    with pytest.raises(ReplyFormatError) as caught:
        parse_reply("word " * 1000)
    assert len(str(caught.value)) < 700

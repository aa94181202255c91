"""One model call per distinct request."""

from __future__ import annotations

import pytest
from pack.vlm.generate import Reply
from pack.vlm.rewrite import ReplyCache, RewriteRequest, ask


class CountingGenerator:
    """Answers with the text it was asked, and counts."""

    def __init__(self, identity: str = "model-bf16") -> None:
        self.identity = identity
        self.calls: list[str] = []

    def generate_text(self, text, images, max_new_tokens, on_token):
        self.calls.append(text)
        return Reply(text=text, num_tokens=1, complete=True)


BASE = {"instruction": "Make it red.", "task": "edit", "images": (), "content_key": "k", "max_new_tokens": 64}


def test_the_tuned_suffix_follows_the_instruction() -> None:
    vlm, cache = CountingGenerator(), ReplyCache()
    ask(vlm, RewriteRequest(**BASE), cache)
    ask(vlm, RewriteRequest(**{**BASE, "task": "generate"}), cache)
    assert vlm.calls == ["Make it red. It is editing task.", "Make it red. It is generation task."]


def test_the_same_request_is_asked_once() -> None:
    vlm, cache = CountingGenerator(), ReplyCache()
    first, second = (ask(vlm, RewriteRequest(**BASE), cache) for _ in range(2))
    assert first is second
    assert len(vlm.calls) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"instruction": "Make it blue."},
        {"task": "generate"},
        {"content_key": "other"},
        {"max_new_tokens": 65},
    ],
)
def test_every_part_of_a_request_counts(change: dict) -> None:
    vlm, cache = CountingGenerator(), ReplyCache()
    ask(vlm, RewriteRequest(**BASE), cache)
    ask(vlm, RewriteRequest(**{**BASE, **change}), cache)
    assert len(vlm.calls) == 2


def test_another_model_or_precision_is_asked_anew() -> None:
    cache = ReplyCache()
    vlms = [CountingGenerator(name) for name in ("model-bf16", "model-fp8", "other-bf16")]
    for vlm in vlms:
        ask(vlm, RewriteRequest(**BASE), cache)
    assert [len(vlm.calls) for vlm in vlms] == [1, 1, 1]


def test_the_cache_forgets_the_least_recently_used() -> None:
    vlm, cache = CountingGenerator(), ReplyCache(size=2)
    for instruction in ("a", "b", "a", "c", "a", "b"):
        ask(vlm, RewriteRequest(**{**BASE, "instruction": instruction}), cache)
    assert [call.split()[0] for call in vlm.calls] == ["a", "b", "c", "b"]


@pytest.mark.parametrize("instruction", ["", "  \n"])
def test_an_empty_instruction_is_refused(instruction: str) -> None:
    with pytest.raises(ValueError, match="the instruction is empty; say what to make"):
        RewriteRequest(**{**BASE, "instruction": instruction})


def test_an_unknown_task_and_a_limit_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown task 'draw'"):
        RewriteRequest(**{**BASE, "task": "draw"})
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        RewriteRequest(**{**BASE, "max_new_tokens": 0})

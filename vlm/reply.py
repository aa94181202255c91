"""The VLM's reply to the prompt inside it.

DreamOmni2's VLM answers between an opening tag of 6 characters and a closing one of 7; upstream cuts them
off blindly. Here a reply that is not one tagged answer is an error, so that neither a tag nor a chat answer
becomes a prompt.
"""

from __future__ import annotations

import re

TAGGED = re.compile(r"<(?P<name>[A-Za-z_][\w-]*)>(?P<answer>.*)</(?P=name)>", re.DOTALL)
# Upstream's fixed cut, taken only where both ends really are tags, whatever their names.
SLICED = re.compile(r"<[A-Za-z_]\w{3}>(?P<answer>.*)</[A-Za-z_]\w{3}>", re.DOTALL)
TAG = re.compile(r"</?[A-Za-z_][\w-]*>")
SHOWN = 400


class ReplyFormatError(ValueError):
    """The VLM's reply is not one answer between a pair of tags: the fault, what to do, the reply.

    Who asked in another way puts a remedy of its own beside `fault` and `reply`.
    """

    def __init__(self, fault: str, reply: str, remedy: str = "") -> None:
        super().__init__(" ".join(part for part in (f"{fault}.", remedy, shown(reply)) if part))
        self.fault, self.reply = fault, reply


def parse_reply(reply: str, complete: bool = True) -> str:
    """The prompt between the reply's tags.

    Raises ReplyFormatError, showing the reply, when there is no tag pair around it, more than one, nothing
    inside, or when the token limit cut it off (`complete` False).
    """
    text = reply.strip()
    match = TAGGED.fullmatch(text) or SLICED.fullmatch(text)
    if match is None:
        raise format_error(text, complete)
    answer = match["answer"].strip()
    if TAG.search(answer):
        raise ReplyFormatError("the VLM's reply holds more than one pair of tags", text)
    if not answer:
        raise ReplyFormatError("the VLM's reply is empty between its tags", text)
    return answer


def format_error(text: str, complete: bool) -> ReplyFormatError:
    """Why `text` is no tagged answer, and what to do."""
    if not text:
        fault, remedy = "the VLM's reply is empty", "Check the VLM folder, or turn rewriting off."
    elif not complete:
        fault, remedy = "the VLM's reply was cut off by the token limit", "Raise max_new_tokens."
    elif TAG.search(text):
        fault, remedy = "the VLM's reply is not one answer between a pair of tags", ""
    else:
        fault = "the VLM's reply has no tags around it"
        remedy = (
            "This is probably not the VLM tuned for DreamOmni2: load its vlm-model folder, or turn "
            "rewriting off."
        )
    return ReplyFormatError(fault, text, remedy)


def shown(text: str) -> str:
    """The reply for an error message, shortened in the middle when it is long."""
    if len(text) > SHOWN:
        text = f"{text[: SHOWN // 2]} [...] {text[-SHOWN // 2 :]}"
    return f"Reply: {text!r}"

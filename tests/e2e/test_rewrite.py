"""The prompt writer on a real server: what a user sees, what is asked once, and what is never asked."""

from __future__ import annotations

import json

import pytest
from live_server import LiveServer
from pack.host.client import Prompt, PromptError
from tiny_vlm import SCRIPTED_PROMPT

pytestmark = pytest.mark.e2e
NAME = "rewrite-then-edit"


def node_of(prompt: Prompt, kind: str) -> str:
    return next(number for number, node in prompt.items() if node["class_type"] == kind)


def prompt_part(live_server: LiveServer, **inputs: object) -> Prompt:
    """The nodes of the workflow that write the prompt and show it."""
    prompt = json.loads(json.dumps(live_server.prompt(NAME)))
    prompt[node_of(prompt, "DreamOmniRewritePrompt")]["inputs"] |= inputs
    kept = {"LoadImage", "DreamOmniReferenceSet", "DreamOmniLoadVLM", "DreamOmniRewritePrompt", "PreviewAny"}
    return {number: node for number, node in prompt.items() if node["class_type"] in kept}


def shown_prompt(live_server: LiveServer, **inputs: object) -> tuple[str, str]:
    """(the text on the preview node, the server's log since) of the prompt part of the workflow."""
    prompt = prompt_part(live_server, **inputs)
    outputs = live_server.run_anew(prompt)
    return outputs[node_of(prompt, "PreviewAny")]["text"][0], live_server.server.log_tail(30)


def test_the_rewritten_prompt_is_shown(live_server: LiveServer) -> None:
    assert shown_prompt(live_server)[0] == SCRIPTED_PROMPT


def test_a_bypassed_or_hand_edited_prompt_is_used_as_it_is(live_server: LiveServer) -> None:
    assert shown_prompt(live_server, rewrite=False, instruction="My words.")[0] == "My words."
    assert shown_prompt(live_server, edited_prompt="By hand.")[0] == "By hand."


def test_without_a_vlm_the_node_says_what_to_connect(live_server: LiveServer) -> None:
    prompt = prompt_part(live_server, instruction="Nobody was asked this.")
    del prompt[node_of(prompt, "DreamOmniRewritePrompt")]["inputs"]["vlm"]
    with pytest.raises(PromptError, match="no VLM is connected; connect Load VLM, or turn rewrite off"):
        live_server.client.run(prompt)

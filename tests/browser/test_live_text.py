"""The VLM's reply appears on its node in the real frontend, as plain text."""

from __future__ import annotations

import pytest
from live_server import LiveServer, read_workflow
from playwright.sync_api import Page
from tiny_vlm import SCRIPTED_PROMPT

pytestmark = pytest.mark.browser
NAME = "rewrite-then-edit"
KEPT = {"LoadImage", "DreamOmniReferenceSet", "DreamOmniLoadVLM", "DreamOmniRewritePrompt", "PreviewAny"}
QUEUE = """
async ([workflow, prompt]) => {
  await window.app.loadGraphData(workflow);
  await window.comfyAPI.api.api.queuePrompt(0, {output: prompt, workflow: window.app.graph.serialize()});
}
"""
BOX = """() => window.app.graph._nodes.find(node => node.type === 'DreamOmniRewritePrompt')
  ?.widgets.find(widget => widget.name === 'dreamomni_live_text')?.element.value"""


def test_the_reply_is_shown_and_not_saved(page: Page, live_server: LiveServer) -> None:
    prompt = {k: node for k, node in live_server.prompt(NAME).items() if node["class_type"] in KEPT}
    live_server.client.forget()
    page.errors.clear()
    page.evaluate(QUEUE, [read_workflow(NAME), prompt])
    page.wait_for_function(f"() => ({BOX})()", timeout=120_000)
    page.wait_for_function(f"() => ({BOX})().includes('</edit>')", timeout=120_000)
    assert page.evaluate(BOX).strip() == f"<edit>{SCRIPTED_PROMPT}</edit>"
    saved = page.evaluate("() => JSON.stringify(window.app.graph.serialize())")
    assert SCRIPTED_PROMPT not in saved
    assert page.errors == []

"""Every shipped workflow in the real frontend."""

from __future__ import annotations

import io

import pytest
from live_server import WORKFLOWS, LiveServer, read_workflow
from pack.host.client import Prompt
from pack.host.prompt import workflow_to_prompt
from PIL import Image
from playwright.sync_api import Page

pytestmark = pytest.mark.browser

LOAD = """
async (workflow) => {
  await window.app.loadGraphData(workflow);
  await new Promise(done => setTimeout(done, 300));
  const nodes = window.app.graph._nodes;
  // Newer frontends mark what waits for a file of the user's.
  const waits = node => node.type === 'LoadImage' || node.properties.models?.length;
  const isKnown = node => LiteGraph.registered_node_types[node.type];
  return {
    types: nodes.map(node => node.type),
    missing: nodes.filter(n => !isKnown(n) || (n.has_errors && !waits(n))).map(n => n.type),
    prompt: (await window.app.graphToPrompt()).output,
  };
}
"""
TYPES_OF_DRAWN_NOTES = {"Note", "MarkdownNote"}
# Text boxes the frontend itself puts on stock nodes and sends along; the server ignores them.
FRONTEND_INPUTS = {"PreviewAny": {"preview"}}


def without_titles(prompt: Prompt) -> Prompt:
    return {number: sent_node(node) for number, node in prompt.items()}


def sent_node(node: Prompt) -> Prompt:
    extra = FRONTEND_INPUTS.get(node["class_type"], set())
    inputs = {name: value for name, value in node["inputs"].items() if name not in extra}
    return {"class_type": node["class_type"], "inputs": inputs}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_opens_whole_and_becomes_the_prompt_we_make_of_it(
    name: str, page: Page, live_server: LiveServer
) -> None:
    workflow = read_workflow(name)
    page.errors.clear()
    opened = page.evaluate(LOAD, workflow)
    assert sorted(opened["types"]) == sorted(node["type"] for node in workflow["nodes"])
    assert opened["missing"] == []
    assert without_titles(opened["prompt"]) == workflow_to_prompt(workflow, live_server.object_info)
    assert page.errors == []
    complaints = page.locator(".p-toast-message")
    assert complaints.all_inner_texts() == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_is_a_template_with_a_picture(name: str, live_server: LiveServer) -> None:
    templates = live_server.client.get("/api/workflow_templates")
    assert name in templates["dreamomni"]
    address = f"/api/workflow_templates/dreamomni/{name}"
    assert live_server.client.get(f"{address}.json") == read_workflow(name)
    picture = live_server.client.request(f"{address}.jpg")
    assert Image.open(io.BytesIO(picture)).format == "JPEG"
    assert len(picture) <= 60_000


@pytest.mark.parametrize("name", WORKFLOWS)
def test_tells_the_user_which_files_it_needs(name: str, live_server: LiveServer) -> None:
    """A note in words, model links for the missing-models dialog, and the pack's own id for the manager."""
    workflow = read_workflow(name)
    notes = [node for node in workflow["nodes"] if node["type"] in TYPES_OF_DRAWN_NOTES]
    assert any(len(node["widgets_values"][0]) > 200 for node in notes)
    text = " ".join(node["widgets_values"][0] for node in notes)
    for node in workflow["nodes"]:
        for model in node["properties"].get("models", []):
            assert model.keys() >= {"name", "url", "directory"}
            # A model that is a folder is chosen by its name; `folder/file` is what ComfyUI lists.
            chosen = model["name"].split("/")[0]
            assert chosen in node["widgets_values"], f"{node['type']} loads no {model['name']}"
            assert chosen in text, f"no note names {model['name']}"
        if node["type"].startswith("DreamOmni"):
            assert node["properties"]["cnr_id"] == "dreamomni"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_needs_no_other_pack(name: str, live_server: LiveServer) -> None:
    for node in read_workflow(name)["nodes"]:
        if node["type"] in TYPES_OF_DRAWN_NOTES:
            continue
        module = live_server.object_info[node["type"]]["python_module"]
        assert not module.startswith("custom_nodes") or module == "custom_nodes.dreamomni", node["type"]

"""What a user sees of the pack in the frontend: the demo's address, names in the menu, the help of a node."""

from __future__ import annotations

import pytest
from live_server import LiveServer, read_workflow
from pack.host.demo import EDIT
from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def test_the_demo_address_opens_its_workflow(template_page: Page) -> None:
    count = len(read_workflow(EDIT)["nodes"])
    template_page.wait_for_function(f"() => window.app.graph._nodes.length === {count}", timeout=30_000)


NAMES = """
() => Object.fromEntries(
  Object.entries(LiteGraph.registered_node_types)
    .filter(([name]) => name.startsWith('DreamOmni'))
    .map(([name, node]) => [name, [node.title, node.category]]))
"""
ADD = """
() => {
  const node = LiteGraph.createNode('DreamOmniPositionEncoding');
  app.graph.clear(); app.graph.add(node);
  app.canvas.ds.reset(); app.canvas.centerOnNode(node);
  const box = app.canvas.canvas.getBoundingClientRect();
  const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 60, node.pos[1] - 15]);
  return [box.x + x, box.y + y];
}
"""


def test_the_menu_shows_our_names_and_stages(page: Page, live_server: LiveServer) -> None:
    ours = {k: v for k, v in live_server.object_info.items() if k.startswith("DreamOmni")}
    assert page.evaluate(NAMES) == {k: [info["display_name"], info["category"]] for k, info in ours.items()}


def test_the_help_of_a_node_is_shown(page: Page) -> None:
    title = page.evaluate(ADD)
    page.wait_for_timeout(500)  # newer frontends draw a node before it can be chosen
    page.mouse.click(*title)
    page.get_by_test_id("info-button").click()
    page.get_by_text("How references are told apart").wait_for(timeout=20_000)

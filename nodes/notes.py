"""Notes that a user should see on the node itself, not only in the console."""

from __future__ import annotations

import html
import logging
import sys
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

log = logging.getLogger("dreamomni")

LIVE_TEXT_EVENT = "dreamomni.text"


def show_note(node: type[io.ComfyNode], text: str) -> None:
    """Write `text` on the node (its schema must ask for `unique_id`) and in the log."""
    log.info(text)
    node_id = node_id_of(node)
    if node_id is not None:
        send_note(node_id, text)


def replace_notes(node: type[io.ComfyNode], class_type: str, text: str) -> None:
    """Write `text` on all nodes of a class in the graph of `node` (its schema must ask for `prompt`).

    A node whose result is kept does not run again, and so cannot take back what it said.
    """
    for node_id, other in graph_of(node).items():
        if other["class_type"] == class_type:
            send_note(node_id, text)


def send_note(node_id: str, text: str) -> None:
    """Write `text` on one node; an empty one would be ignored by the frontend."""
    server = running_server()
    if server is not None:
        # The frontend renders this as HTML; a file name or a reply must not become markup.
        server.send_progress_text(html.escape(text, quote=False), node_id, sid=server.client_id)


def show_live_text(node: type[io.ComfyNode], text: str) -> None:
    """Write text that still grows into the node's text box (web/js/live_text.js), as plain text."""
    node_id, server = node_id_of(node), running_server()
    if server is not None and node_id is not None:
        server.send_sync(LIVE_TEXT_EVENT, {"node": node_id, "text": text}, server.client_id)


def node_id_of(node: type[io.ComfyNode]) -> str | None:
    """The execution id of a running node, `3:7` inside a subgraph."""
    return node.hidden.unique_id if node.hidden is not None else None


def graph_of(node: type[io.ComfyNode]) -> Mapping[str, Any]:
    """Node id -> node of the graph that runs (the schema must ask for `prompt`); empty in a test."""
    return (node.hidden.prompt if node.hidden is not None else None) or {}


def running_server() -> Any:
    """ComfyUI's server; None in a test, where importing it would start half of one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)

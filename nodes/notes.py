"""Notes that a user should see on the node itself, not only in the console."""

from __future__ import annotations

import html
import logging
import sys
from typing import Any

from comfy_api.latest import io

log = logging.getLogger("dreamomni")

LIVE_TEXT_EVENT = "dreamomni.text"


def show_note(node: type[io.ComfyNode], text: str) -> None:
    """Write `text` on the node (its schema must ask for `unique_id`) and in the log."""
    log.info(text)
    node_id, server = node_id_of(node), running_server()
    if server is not None and node_id is not None:
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


def running_server() -> Any:
    """ComfyUI's server; None in a test, where importing it would start half of one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)

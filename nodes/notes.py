"""Notes that a user should see on the node itself, not only in the console."""

from __future__ import annotations

import logging
import sys

from comfy_api.latest import io

log = logging.getLogger("dreamomni")


def show_note(node: type[io.ComfyNode], text: str) -> None:
    """Write `text` on the node (its schema must ask for `unique_id`) and in the log."""
    log.info(text)
    show_text(node, text)


def show_text(node: type[io.ComfyNode], text: str) -> None:
    """Write `text` on the node alone; for text that grows while the node works."""
    node_id = node.hidden.unique_id if node.hidden is not None else None
    # Looked up, not imported: without a running server (a test) importing it would start half of one.
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id, sid=server.client_id)

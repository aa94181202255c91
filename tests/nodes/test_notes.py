"""Notes and live text reach the frontend as text, never as markup."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.host
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def sent(monkeypatch):
    """What a running server would send, as (kind, node, text)."""
    messages: list[tuple] = []
    server = SimpleNamespace(
        client_id="me",
        send_progress_text=lambda text, node, sid: messages.append(("note", node, text, sid)),
        send_sync=lambda event, data, sid: messages.append((event, data["node"], data["text"], sid)),
    )
    module = SimpleNamespace(PromptServer=SimpleNamespace(instance=server))
    monkeypatch.setitem(sys.modules, "server", module)
    return messages


def test_a_note_is_escaped_for_the_frontend_that_renders_html(sent) -> None:
    from pack.nodes.notes import show_note

    show_note(SimpleNamespace(hidden=SimpleNamespace(unique_id="3:7")), HOSTILE)
    assert sent == [("note", "3:7", "&lt;img src=x onerror=alert(1)&gt;", "me")]


def test_live_text_goes_to_the_plain_text_box(sent) -> None:
    from pack.nodes.notes import show_live_text

    show_live_text(SimpleNamespace(hidden=SimpleNamespace(unique_id="7")), HOSTILE)
    assert sent == [("dreamomni.text", "7", HOSTILE, "me")]


def test_without_a_server_nothing_is_sent(sent, monkeypatch) -> None:
    from pack.nodes.notes import show_live_text, show_note

    monkeypatch.setitem(sys.modules, "server", None)
    show_note(SimpleNamespace(hidden=None), "x")
    show_live_text(SimpleNamespace(hidden=None), "x")
    assert sent == []

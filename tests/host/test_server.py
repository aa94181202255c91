"""Who answers on the server's port, without ComfyUI."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from pack.host import places, server


class Stranger(BaseHTTPRequestHandler):
    """Answers everything, but not as ComfyUI does."""

    def do_GET(self) -> None:  # the name is http.server's
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>not ComfyUI</html>")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def stranger() -> Iterator[int]:
    """The port of somebody else's server."""
    with HTTPServer(("127.0.0.1", 0), Stranger) as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.01,))
        thread.start()
        yield other.server_port
        other.shutdown()
        thread.join()


class Running:
    """A process that ends after a few looks at it."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def poll(self) -> int | None:
        self.looks -= 1
        return 0 if self.looks < 0 else None


def test_a_port_in_use_is_refused_before_anything_is_started(
    tmp_path: Path, stranger: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def popen(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(server.subprocess, "Popen", popen)
    with pytest.raises(places.SetupError, match=rf"port {stranger} is in use.*; choose another with --port"):
        server.Server(tmp_path, port=stranger).start()
    assert not list(tmp_path.iterdir())


def test_a_port_somebody_only_holds_is_refused() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        with pytest.raises(places.SetupError, match=f"port {port} is in use"):
            server.require_free_port(port)
    server.require_free_port(port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_does_not_exist_is_refused(port: int) -> None:
    with pytest.raises(places.SetupError, match=f"there is no port {port}; choose one from 1 to 65535"):
        server.require_free_port(port)


def test_an_answer_that_is_not_comfyui_is_no_answer(
    tmp_path: Path, stranger: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.time, "sleep", lambda _: None)
    process: Any = Running(2)
    assert server.Server(tmp_path, port=stranger).is_up_in_time(process) is False

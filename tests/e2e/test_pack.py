"""What the server offers from the pack: nodes, help, names."""

from __future__ import annotations

import pytest
from live_server import LiveServer
from pack.host.locales import OUR_MODULE, node_list

pytestmark = pytest.mark.e2e


def our_nodes(live_server: LiveServer) -> dict:
    return {k: info for k, info in live_server.object_info.items() if info["python_module"] == OUR_MODULE}


def test_the_pack_loads_without_a_complaint(live_server: LiveServer) -> None:
    assert our_nodes(live_server)
    log = live_server.server.log_tail(1000)
    assert "IMPORT FAILED" not in log
    assert "Error while calling comfy_entrypoint" not in log


def test_the_list_for_scanners_names_every_node(live_server: LiveServer) -> None:
    assert set(node_list(live_server.object_info)) == set(our_nodes(live_server))

"""What the server offers from the pack: nodes, help, names."""

from __future__ import annotations

import json

import pytest
from live_server import LiveServer
from pack.host.locales import OUR_MODULE, node_definitions, node_list, written_files
from pack.host.places import PACK_FOLDER, ROOT

pytestmark = pytest.mark.e2e


def our_nodes(live_server: LiveServer) -> dict:
    return {k: info for k, info in live_server.object_info.items() if info["python_module"] == OUR_MODULE}


def test_the_pack_loads_without_a_complaint(live_server: LiveServer) -> None:
    assert our_nodes(live_server)
    log = live_server.server.log_tail(1000)
    assert not [line for line in log.splitlines() if "IMPORT FAILED" in line and PACK_FOLDER in line]
    assert "Error while calling comfy_entrypoint" not in log


def test_every_node_has_a_help_page(live_server: LiveServer) -> None:
    for name, info in our_nodes(live_server).items():
        assert (ROOT / "web" / "docs" / f"{name}.md").is_file(), f"no help page for {name}"
        page = live_server.client.request(f"/extensions/dreamomni/docs/{name}.md").decode()
        inputs = [key for group in ("required", "optional") for key in info["input"].get(group) or {}]
        missing = [key for key in inputs if key not in page and family_of(key) not in page]
        assert not missing, f"web/docs/{name}.md does not explain {missing}"


def family_of(name: str) -> str:
    """`image_` of `image_3`: a page may explain numbered inputs together."""
    return name.rstrip("0123456789")


def test_no_help_page_is_left_without_a_node(live_server: LiveServer) -> None:
    pages = {path.stem for path in (ROOT / "web" / "docs").glob("*.md")}
    assert pages == set(our_nodes(live_server))


def test_locales_and_node_list_are_current(live_server: LiveServer) -> None:
    for path, text in written_files(live_server.object_info).items():
        assert path.is_file() and path.read_text() == text, "run `python dev.py locales`"


def test_the_server_serves_the_names(live_server: LiveServer) -> None:
    served = live_server.client.get("/api/i18n")["en"]["nodeDefs"]
    ours = node_definitions(live_server.object_info)
    assert {name: served[name] for name in ours} == json.loads(json.dumps(ours))


def test_the_list_for_scanners_names_every_node(live_server: LiveServer) -> None:
    assert set(node_list(live_server.object_info)) == set(our_nodes(live_server))

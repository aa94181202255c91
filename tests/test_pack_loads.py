"""The pack's entry point under the real node API."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import HOST, ROOT

pytestmark = pytest.mark.host

INTERFACE = ROOT / "tests" / "interface.json"
"""Node id -> input names and output types in order, as shared workflows have them. Kept by hand."""


def nodes_of_the_pack() -> list:
    import pack

    async def collect() -> list:
        return await (await pack.comfy_entrypoint()).get_node_list()

    return asyncio.run(collect())


def test_every_node_has_a_valid_schema_of_ours() -> None:
    for node in nodes_of_the_pack():
        schema = node.GET_SCHEMA()
        schema.validate()
        assert schema.node_id.startswith("DreamOmni")
        assert schema.category.startswith("DreamOmni")
        assert schema.description
        missing = [item.id for item in schema.inputs if not item.tooltip]
        assert not missing, f"{schema.node_id} inputs without a tooltip: {missing}"
        assert all(output.display_name for output in schema.outputs), schema.node_id


def test_the_model_folders_are_registered_before_the_choices_are_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pack.model_loaders.paths import FOLDERS

    import folder_paths

    nodes_of_the_pack()
    known = folder_paths.folder_names_and_paths
    rest = {key: value for key, value in known.items() if key not in FOLDERS}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", rest)
    for node in nodes_of_the_pack():
        node.GET_SCHEMA()
    assert rest.keys() >= FOLDERS.keys()
    assert {key: rest[key][0] for key in FOLDERS} == {key: known[key][0] for key in FOLDERS}


# Spelt out, not through pack_loader.py: this is how ComfyUI itself loads a pack.
BARE = """
import asyncio, importlib.util, sys
root, host = sys.argv[1:]
del sys.argv[1:]
for name in ("diffusers", "peft", "accelerate"):
    sys.modules[name] = None
from_file = importlib.util.spec_from_file_location
spec = from_file("pack", root + "/__init__.py", submodule_search_locations=[root])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
sys.path.append(host)
from comfy.cli_args import args
args.cpu = True
import folder_paths
before = dict(folder_paths.folder_names_and_paths)
extension = asyncio.run(pack.comfy_entrypoint())
assert folder_paths.folder_names_and_paths == before, "folders change when nodes are asked for, not at import"
print(len(asyncio.run(extension.get_node_list())))
"""


def test_the_nodes_are_there_without_the_libraries_of_training() -> None:
    command = [sys.executable, "-c", BARE, str(ROOT), str(HOST)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-1]) == len(nodes_of_the_pack())


def test_node_ids_are_unique() -> None:
    ids = [node.GET_SCHEMA().node_id for node in nodes_of_the_pack()]
    assert len(ids) == len(set(ids))


def interfaces() -> dict[str, dict[str, list[str]]]:
    """Node id -> its inputs, those a workflow may leave out, and the types of its outputs, in order."""
    schemas = [node.GET_SCHEMA() for node in nodes_of_the_pack()]
    return {
        schema.node_id: {
            "inputs": [item.id for item in schema.inputs],
            "optional": [item.id for item in schema.inputs if item.optional],
            "outputs": [str(item.get_io_type()) for item in schema.outputs],
        }
        for schema in schemas
    }


def breaks(frozen: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """Why workflows that were shared would not run any more."""
    found = [f"{node}: not in {INTERFACE.name}; add it there" for node in present if node not in frozen]
    for node, before in frozen.items():
        now = present.get(node)
        if now is None:
            found.append(f"{node} is gone")
            continue
        for kind in ("inputs", "outputs"):
            if now[kind][: len(before[kind])] != before[kind]:
                found.append(f"{node}: its {kind} were {before[kind]}, now {now[kind]}; add at the end only")
        asked = [name for name in now["inputs"] if name not in {*before["inputs"], *now["optional"]}]
        found += [f"{node}: the new input {name} must be optional" for name in asked]
    return found


def test_the_interface_of_every_node_stays() -> None:
    found = breaks(json.loads(INTERFACE.read_text()), interfaces())
    assert not found, "shared workflows depend on ids, input names and the order of outputs:\n" + "\n".join(
        found
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"inputs": ["b", "a"]}, "A: its inputs were"),
        ({"inputs": ["a"]}, "A: its inputs were"),
        ({"inputs": ["a", "new", "b"], "optional": ["new"]}, "A: its inputs were"),
        ({"inputs": ["a", "b", "new"]}, "A: the new input new must be optional"),
        ({"outputs": ["MASK", "IMAGE"]}, "A: its outputs were"),
        ({"inputs": ["a", "b", "new"], "optional": ["new"], "outputs": ["IMAGE", "MASK", "INT"]}, None),
    ],
)
def test_what_would_break_a_workflow(change: dict[str, list[str]], complaint: str | None) -> None:
    node = {"inputs": ["a", "b"], "outputs": ["IMAGE", "MASK"]}
    found = breaks({"A": node}, {"A": {**node, "optional": [], **change}})
    assert [line[: len(complaint or "")] for line in found] == ([complaint] if complaint else [])
    assert breaks({"A": node}, {}) == ["A is gone"]

"""The pack's entry point under the real node API."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from tests.conftest import HOST, ROOT

pytestmark = pytest.mark.host


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
extension = asyncio.run(pack.comfy_entrypoint())
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

"""The pack's entry point under the real node API."""

from __future__ import annotations

import asyncio

import pytest

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


def test_node_ids_are_unique() -> None:
    ids = [node.GET_SCHEMA().node_id for node in nodes_of_the_pack()]
    assert len(ids) == len(set(ids))

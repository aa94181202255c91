"""What the notes of the shipped workflows promise: groups that may be muted, files, other nodes' names."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from pack.host.places import ROOT
from pack.host.readme import NOTES

WORKFLOWS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "workflows").glob("*.json")
}
TITLE_HEIGHT = 30
"""Pixels of a node's title, which the frontend counts to its size but not to its position."""


def note_of(name: str) -> str:
    """All notes of a workflow."""
    nodes = WORKFLOWS[name]["nodes"]
    return "\n".join(node["widgets_values"][0] for node in nodes if node["type"] in NOTES)


def members(workflow: dict[str, Any], group: dict[str, Any]) -> set[int]:
    """The nodes the frontend counts to a group: those whose centre is inside."""
    x, y, width, height = group["bounding"]

    def inside(node: dict[str, Any]) -> bool:
        across = node["pos"][0] + node["size"][0] / 2
        down = node["pos"][1] + (node["size"][1] - TITLE_HEIGHT) / 2
        return x <= across < x + width and y <= down < y + height

    return {node["id"] for node in workflow["nodes"] if inside(node)}


def test_a_group_that_may_be_muted_takes_nothing_from_the_others() -> None:
    told = {name: text for name in WORKFLOWS if "mute the groups" in (text := note_of(name))}
    assert told
    for name, text in told.items():
        workflow = WORKFLOWS[name]
        saved = {node["id"] for node in workflow["nodes"] if node["type"] == "SaveImage"}
        groups = {group["title"]: members(workflow, group) for group in workflow["groups"]}
        muted = {title: nodes for title, nodes in groups.items() if nodes & saved}
        assert saved <= set().union(*muted.values()), f"{name}: Save Image lies outside the groups"
        assert [title for title in muted if f"*{title}*" not in text] == [], name
        for title, nodes in muted.items():
            leaving = [link for link in workflow["links"] if link[1] in nodes and link[3] not in nodes]
            assert not leaving, f"{name}: without the group {title} these links lack their start: {leaving}"


def renamed_files() -> list[tuple[str, str]]:
    """Workflow and last part of the address, for each model that is loaded under another name."""
    models = [
        (name, model["url"].rpartition("/")[2], model["name"].rpartition("/")[2])
        for name, workflow in WORKFLOWS.items()
        for node in workflow["nodes"]
        for model in node.get("properties", {}).get("models", [])
    ]
    return sorted({(name, fetched) for name, fetched, loaded in models if fetched != loaded})


def test_a_note_names_what_the_browser_saves_where_the_graph_loads_another_name() -> None:
    renamed = renamed_files()
    assert len(renamed) == 6
    for name, fetched in renamed:
        text = note_of(name)
        assert f"saves both as `{fetched}`" in text, name
        assert "rename the first before you fetch the second" in text, name
        tasks = {n["widgets_values"][0] for n in WORKFLOWS[name]["nodes"] if "ReferenceSet" in n["type"]}
        other = "edit_lora" if tasks == {"generate"} else "generate_lora"
        assert f"`{other}` may be *none*" in text, name


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_a_note_that_offers_gguf_names_the_pack_and_the_node(name: str) -> None:
    text = note_of(name)
    if "GGUF" in text:
        assert "*Unet Loader (GGUF)* of the pack ComfyUI-GGUF in place of *Load Diffusion Model*" in text


def commands() -> dict[str, str]:
    """Repository -> README's command that fetches it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^(hf download (\S+).*--local-dir ComfyUI/models/(?!loras)\S+)$", text, re.MULTILINE)
    return {repository: command for command, repository in found}


def test_notes_of_omnigen_and_of_the_vlm_say_how_their_folder_is_fetched() -> None:
    fetch = commands()
    for name in (*(name for name in WORKFLOWS if name.startswith("omnigen-")), "rewrite-then-edit"):
        repository = "xiabs/DreamOmni2" if name == "rewrite-then-edit" else "Shitao/OmniGen-v1"
        assert f"`{fetch[repository]}`" in note_of(name), name


def test_the_note_of_the_rewriting_is_about_the_task_not_about_code() -> None:
    text = note_of("rewrite-then-edit")
    assert "suffix" not in text
    assert "tells the VLM which of the two it writes for" in text


def test_a_region_of_a_camera_photo_is_told_to_be_cropped_first() -> None:
    page = (ROOT / "web" / "docs" / "DreamOmniReferenceConditioning.md").read_text(encoding="utf-8")
    tip = page.partition("## Tip: change only a region")[2].partition("\n## ")[0]
    for text in (note_of("edit-region"), " ".join(tip.split())):
        assert "about one megapixel" in text
        told = [node for node in ("Image Crop", "CropMask", "ImageCompositeMasked") if f"*{node}*" in text]
        assert len(told) == 3, told

"""What the demo asks: the shipped cases through the shipped workflows, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from pack.host import demo, places
from pack.host.prompt import MUTED

INFO = {
    "DreamOmniExamplePicture": {"input": {"required": {"picture": ["COMBO", {"options": []}]}}},
    "DreamOmniVLMEncode": {
        "input": {"required": {"vlm": ["DREAMOMNI_VLM", {}], "prompt": ["STRING", {"multiline": True}]}}
    },
}
WORKFLOWS = (demo.EDIT, demo.REFERENCE_EDIT, demo.GENERATE, demo.SWITCH)


def said(workflow: dict) -> tuple[list[str], set[str]]:
    """(pictures in order, instructions) of a saved workflow."""
    nodes = sorted(workflow["nodes"], key=lambda node: node["id"])
    shown = [node for node in nodes if node["type"] == demo.PICTURE and node.get("mode", 0) != MUTED]
    told = {node["widgets_values"][0] for node in nodes if node["type"] == demo.INSTRUCTION}
    return [node["widgets_values"][0] for node in shown], told


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_is_saved_with_one_of_the_cases(name: str) -> None:
    wanted = demo.REFERENCE_EDIT if name == demo.SWITCH else name
    cases = [case for case in demo.read_cases() if demo.workflow_for(case) == wanted]
    asked = [([Path(p).stem for p in demo.input_pictures(case)], {case["instruction"]}) for case in cases]
    assert said(demo.read_workflow(name)) in asked


@pytest.mark.parametrize("case", demo.read_cases(), ids=lambda case: case["id"])
def test_a_case_becomes_its_workflow(case: dict) -> None:
    workflow = demo.read_workflow(demo.workflow_for(case))
    changed = demo.asked(workflow, INFO, case)
    assert said(changed) == ([Path(p).stem for p in demo.input_pictures(case)], {case["instruction"]})
    assert len(changed["nodes"]) == len(workflow["nodes"])
    assert all((demo.CASES / path).is_file() for path in (*demo.input_pictures(case), case["target"]))


def test_every_workflow_has_a_case_and_names_what_it_saves() -> None:
    assert {demo.workflow_for(case) for case in demo.read_cases()} == set(WORKFLOWS) - {demo.SWITCH}
    for name in WORKFLOWS:
        saved = [node for node in demo.read_workflow(name)["nodes"] if node["type"] == demo.SAVED]
        assert len(saved) == (3 if name == demo.SWITCH else 1)
        assert all(node.get("title") for node in saved)


def test_the_readme_begins_with_the_sheet() -> None:
    head = (demo.ROOT / "README.md").read_text(encoding="utf-8").partition("\n## ")[0]
    assert f"]({demo.README_PICTURE.relative_to(demo.ROOT).as_posix()})" in head
    assert "python dev.py demo" in head
    assert demo.README_PICTURE.stat().st_size < 200_000


def test_without_the_model_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "MODEL", demo.ROOT / "assets" / "gone")
    with pytest.raises(places.SetupError, match=r"assets.gone is missing; .* train-small"):
        demo.run_demo(serve=False, port=0)

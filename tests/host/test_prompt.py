"""Saved workflows as prompts; the browser tests hold this against the frontend itself."""

from __future__ import annotations

import pytest
from adapted_prompt import adapt
from pack.host.prompt import workflow_to_prompt

INFO = {
    "Load": {"input": {"required": {"name": [["a", "b"], {}]}}},
    "Picture": {"input": {"required": {"image": [["x.png"], {"image_upload": True}]}}},
    "Sample": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"control_after_generate": True}],
                "steps": ["INT", {}],
            },
            "optional": {"note": ["STRING", {"forceInput": True}], "eta": ["FLOAT", {}]},
        }
    },
}


def node(number: int, kind: str, values: list, links: dict | None = None, mode: int = 0) -> dict:
    inputs = [{"name": name, "type": "MODEL", "link": link} for name, link in (links or {}).items()]
    return {"id": number, "type": kind, "widgets_values": values, "inputs": inputs, "mode": mode}


def workflow(*nodes: dict, links: tuple = ()) -> dict:
    return {"nodes": list(nodes), "links": [list(link) for link in links]}


def test_widgets_go_by_their_order_and_controls_are_skipped() -> None:
    saved = workflow(
        node(1, "Load", ["b"]),
        node(2, "Sample", [7, "fixed", 20, 0.5], {"model": 5}),
        node(3, "MarkdownNote", ["text"]),
        links=((5, 1, 0, 2, 0, "MODEL"),),
    )
    assert workflow_to_prompt(saved, INFO) == {
        "1": {"class_type": "Load", "inputs": {"name": "b"}},
        "2": {"class_type": "Sample", "inputs": {"seed": 7, "steps": 20, "eta": 0.5, "model": ["1", 0]}},
    }


def test_inputs_that_are_newer_than_the_workflow_have_their_defaults() -> None:
    info = {"Sample": {"input": {"required": {"steps": ["INT", {"default": 20}], "kind": [["a", "b"], {}]}}}}
    saved = workflow(node(1, "Sample", [5]))
    assert workflow_to_prompt(saved, info)["1"]["inputs"] == {"steps": 5, "kind": "a"}


def test_the_upload_button_takes_a_value_of_its_own() -> None:
    saved = workflow(node(1, "Picture", ["cat.png", "image"]))
    assert workflow_to_prompt(saved, INFO)["1"]["inputs"] == {"image": "cat.png"}


@pytest.mark.parametrize(("mode", "origin"), [(4, ["1", 0]), (2, None)])
def test_bypassed_nodes_pass_on_and_muted_ones_do_not(mode: int, origin: list | None) -> None:
    saved = workflow(
        node(1, "Load", ["a"]),
        node(2, "Sample", [1, "fixed", 2, 0.0], {"model": 5}, mode=mode),
        node(3, "Sample", [1, "fixed", 2, 0.0], {"model": 6}),
        links=((5, 1, 0, 2, 0, "MODEL"), (6, 2, 0, 3, 0, "MODEL")),
    )
    prompt = workflow_to_prompt(saved, INFO)
    assert list(prompt) == ["1", "3"]
    assert prompt["3"]["inputs"].get("model") == origin


def test_an_unknown_node_is_named() -> None:
    with pytest.raises(ValueError, match="a node Gone, which this ComfyUI does not have"):
        workflow_to_prompt(workflow(node(1, "Gone", [])), INFO)


def test_adapting_replaces_classes_and_sets_values_but_no_links() -> None:
    prompt = {
        "1": {"class_type": "Big", "inputs": {"name": "x"}},
        "2": {"class_type": "Sample", "inputs": {"model": ["1", 0], "steps": 30}},
    }
    rules = {"replaced": {"Big": ["Small", {"width": 8}]}, "settings": {"Sample.steps": 2, "Sample.model": 1}}
    assert adapt(prompt, rules) == {
        "1": {"class_type": "Small", "inputs": {"width": 8}},
        "2": {"class_type": "Sample", "inputs": {"model": ["1", 0], "steps": 2}},
    }
    assert prompt["2"]["inputs"]["steps"] == 30

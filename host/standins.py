"""Changes prompts and workflows so that they run on small models; the rules come from tests/e2e/standins."""

from __future__ import annotations

import copy
from typing import Any

from .client import Prompt
from .prompt import widget_slots


def adapt(prompt: Prompt, rules: dict[str, Any]) -> Prompt:
    """A copy of `prompt` with classes replaced and inputs set as `rules` say; links stay."""
    changed: Prompt = {}
    for number, node in prompt.items():
        kind, inputs = node["class_type"], dict(node["inputs"])
        if kind in rules["replaced"]:
            kind, replacement = rules["replaced"][kind]
            inputs = dict(replacement)
        for setting, value in rules["settings"].items():
            of_class, name = setting.split(".")
            if of_class == kind and name in inputs and not isinstance(inputs[name], list):
                inputs[name] = value
        changed[number] = {"class_type": kind, "inputs": inputs}
    return changed


def adapt_workflow(
    workflow: dict[str, Any], rules: dict[str, Any], object_info: dict[str, Any]
) -> dict[str, Any]:
    """A copy of a saved workflow with the same changes: its Run button works without the real models."""
    changed = copy.deepcopy(workflow)
    for node in changed["nodes"]:
        if node["type"] in rules["replaced"]:
            kind, inputs = rules["replaced"][node["type"]]
            slots = widget_slots(object_info[kind])
            node |= {"type": kind, "inputs": [], "widgets_values": [inputs.get(name) for name in slots]}
            node["properties"] = {"Node name for S&R": kind}
        node["properties"].pop("models", None)
        slots = widget_slots(object_info[node["type"]]) if node["type"] in object_info else []
        for setting, value in rules["settings"].items():
            of_class, name = setting.split(".")
            if of_class == node["type"] and name in slots:
                node["widgets_values"][slots.index(name)] = value
    return changed

"""A saved workflow (the frontend's format 0.4) as the prompt that a server runs."""

from __future__ import annotations

from typing import Any

from .client import Prompt

MUTED, BYPASSED = 2, 4
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
# Nodes of the frontend that the server does not know.
DRAWN_ONLY = {"Note", "MarkdownNote"}


def workflow_to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> Prompt:
    """The prompt the frontend would queue for `workflow`; ValueError for a node the server does not have."""
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] not in DRAWN_ONLY}
    links = {link[0]: (link[1], link[2], link[5]) for link in workflow["links"]}
    prompt: Prompt = {}
    for node in nodes.values():
        if node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        if node["type"] not in object_info:
            raise ValueError(f"the workflow has a node {node['type']}, which this ComfyUI does not have")
        inputs = widget_values(node, object_info[node["type"]])
        for slot in node.get("inputs", []):
            origin = find_origin(slot.get("link"), nodes, links)
            if origin is not None:
                inputs[slot["name"]] = origin
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """The values typed into a node, by input, in the order of the node's definition."""
    values = iter(node.get("widgets_values") or [])
    known = dict(definitions(info))
    # A node that got a new input since the workflow was saved: the input has its default.
    pairs = [(name, next(values, default_of(known.get(name)))) for name in widget_slots(info)]
    return {name: value for name, value in pairs if name is not None}


def default_of(definition: list[Any] | None) -> Any:
    """What a fresh widget shows."""
    if definition is None:
        return None
    choices = definition[0] if isinstance(definition[0], list) else options_of(definition).get("options")
    return options_of(definition).get("default", choices[0] if choices else None)


def widget_slots(info: dict[str, Any]) -> list[str | None]:
    """The input behind each of a node's saved values; None for a widget that only the frontend knows."""
    slots: list[str | None] = []
    for name, definition in definitions(info):
        if is_widget(definition):
            extra = has_value_control(name, definition) + bool(options_of(definition).get("image_upload"))
            slots += [name, *[None] * extra]
    return slots


def definitions(info: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    """(name, definition) of the required and optional inputs of a node, in order."""
    groups = [info["input"].get(group) or {} for group in ("required", "optional")]
    return [pair for group in groups for pair in group.items()]


def options_of(definition: list[Any]) -> dict[str, Any]:
    """The options in an input's definition."""
    return definition[1] if len(definition) > 1 else {}


def is_widget(definition: list[Any]) -> bool:
    """Whether the frontend draws a widget for this input."""
    kind = definition[0]
    drawn = isinstance(kind, list) or kind in WIDGET_TYPES
    return drawn and not options_of(definition).get("forceInput")


def has_value_control(name: str, definition: list[Any]) -> bool:
    """Whether the frontend adds a `control after generate` widget below this one."""
    control = options_of(definition).get("control_after_generate")
    return bool(control) or (control is None and definition[0] == "INT" and name in ("seed", "noise_seed"))


def find_origin(link: int | None, nodes: dict[int, Any], links: dict[int, Any]) -> list[Any] | None:
    """[node id, output slot] that a link brings a value from, through bypassed nodes; None if nothing."""
    if link is None or link not in links:
        return None
    node_id, slot, kind = links[link]
    node = nodes.get(node_id)
    if node is None or node.get("mode", 0) == MUTED:
        return None
    if node.get("mode", 0) != BYPASSED:
        return [str(node_id), slot]
    through = [other.get("link") for other in node.get("inputs", []) if other["type"] == kind]
    if len(through) > slot >= 0:
        through.insert(0, through[slot])
    return next((origin for found in through if (origin := find_origin(found, nodes, links))), None)

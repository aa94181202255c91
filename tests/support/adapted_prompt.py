"""Changes prompts so that they run on small models; the rules come from tests/e2e/standins."""

from __future__ import annotations

from typing import Any

from pack.host.client import Prompt


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

"""Part of a shipped workflow, run node by node without a server."""

from __future__ import annotations

from typing import Any

from live_server import read_workflow
from pack.host.prompt import workflow_to_prompt


def running(node: Any, told: dict[str, Any]) -> Any:
    """The node as ComfyUI runs it, told these hidden inputs (`unique_id`, `prompt`) if its schema asks."""
    from comfy_api.latest import _io as io

    asked = node.GET_SCHEMA().hidden or []
    hidden = {kind: told[kind.name] for kind in asked if kind.name in told}
    # Newer ComfyUI hands them over together with other things.
    newer = hasattr(io.HiddenHolder, "from_v3_data")
    return node.PREPARE_CLASS_CLONE({"hidden_inputs": hidden} if newer else hidden)


def run_nodes(name: str, classes: dict[str, Any], results: dict[str, Any]) -> None:
    """Run a shipped workflow's nodes of these classes; `results`, by class, has what the others give."""
    workflow = read_workflow(name)
    info = {node["type"]: {"input": {}} for node in workflow["nodes"]}
    info |= {kind: {"input": node.INPUT_TYPES()} for kind, node in classes.items()}
    prompt = workflow_to_prompt(workflow, info)

    def outputs(number: str) -> Any:
        kind = prompt[number]["class_type"]
        if kind not in results:
            inputs = prompt[number]["inputs"].items()
            values = {key: outputs(v[0])[v[1]] if isinstance(v, list) else v for key, v in inputs}
            node = classes[kind]
            results[kind] = (
                running(node, {}).execute(**values).result
                if hasattr(node, "execute")
                else getattr(node(), node.FUNCTION)(**values)
            )
        return results[kind]

    for number, node in prompt.items():
        if node["class_type"] in classes:
            outputs(number)

"""What is written from the nodes: ComfyUI's locale files, the list for scanners, README tables."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from .places import PACK_FOLDER, ROOT, SetupError
from .readme import filled_readme
from .server import Server

OUR_MODULE = f"custom_nodes.{PACK_FOLDER}"


def write_locales() -> int:
    """Write the files anew from what a real server says about the nodes; 0 as exit code."""
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        files = written_files(server.client.object_info())
        if not node_list(server.client.object_info()):
            raise SetupError(f"ComfyUI did not load the pack:\n{server.log_tail()}")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


def written_files(object_info: dict[str, Any]) -> dict[Path, str]:
    """Path -> text of everything that is generated."""
    contents = {
        "locales/en/nodeDefs.json": node_definitions(object_info),
        "locales/en/main.json": {"nodeCategories": categories(object_info)},
        "node_list.json": node_list(object_info),
    }
    files = {ROOT / name: as_json(value) for name, value in contents.items()}
    return {**files, ROOT / "README.md": filled_readme(our_nodes(object_info))}


def as_json(value: dict[str, Any]) -> str:
    """The form the files are kept in."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def our_nodes(object_info: dict[str, Any]) -> dict[str, Any]:
    """The pack's own nodes, by id, sorted."""
    return {
        name: info for name, info in sorted(object_info.items()) if info.get("python_module") == OUR_MODULE
    }


def node_list(object_info: dict[str, Any]) -> dict[str, str]:
    """Node id -> description."""
    return {name: info["description"] for name, info in our_nodes(object_info).items()}


def categories(object_info: dict[str, Any]) -> dict[str, str]:
    """The roots of the nodes' menu paths -> how they are shown; the stages below have ComfyUI's own names."""
    roots = {info["category"].partition("/")[0] for info in our_nodes(object_info).values()}
    return {root: root for root in sorted(roots)}


def node_definitions(object_info: dict[str, Any]) -> dict[str, Any]:
    """Node id -> names, description and tooltips, as nodeDefs.json holds them."""
    return {name: definition(info) for name, info in our_nodes(object_info).items()}


def definition(info: dict[str, Any]) -> dict[str, Any]:
    """One node's entry."""
    inputs = {}
    for group in ("required", "optional"):
        for name, (_, *options) in (info["input"].get(group) or {}).items():
            tooltip = options[0].get("tooltip") if options else None
            shown = (options[0].get("display_name") if options else None) or name
            inputs[name] = {"name": shown, **({"tooltip": tooltip} if tooltip else {})}
    tooltips = info.get("output_tooltips") or [None] * len(info["output_name"])
    outputs = {
        str(slot): {"name": name, **({"tooltip": tooltip} if tooltip else {})}
        for slot, (name, tooltip) in enumerate(zip(info["output_name"], tooltips, strict=True))
    }
    entry = {"display_name": info["display_name"], "description": info["description"], "inputs": inputs}
    return {**entry, "outputs": outputs}

"""The parts of README.md that follow from the nodes and the workflows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .places import ROOT

NOTES = {"Note", "MarkdownNote"}


def filled_readme(nodes: dict[str, Any]) -> str:
    """README.md with the text between its markers written anew, from object_info's entries of ours."""
    text = (ROOT / "README.md").read_text()
    for name, section in (("workflows", workflows_section()), ("nodes", nodes_section(nodes))):
        marked = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, found = marked.subn(lambda match, s=section: f"{match[1]}\n{s}\n\n{match[2]}", text)
        assert found == 1, f"README.md has no markers for {name}"
    return text


def workflows_section() -> str:
    """A table of the shipped workflows."""
    rows = [
        f"| [{path.stem}](workflows/{path.name}) | {purpose(path)} |"
        for path in sorted((ROOT / "workflows").glob("*.json"))
    ]
    return "\n".join(["| workflow | what it does |", "|---|---|", *rows])


def purpose(path: Path) -> str:
    """The title of a workflow's note, in lower case at its start."""
    notes = [node for node in json.loads(path.read_text())["nodes"] if node["type"] in NOTES]
    title = notes[0]["widgets_values"][0].splitlines()[0].lstrip("# ").rstrip(".")
    first = title.split()[0]
    return title[0].lower() + title[1:] if first == first.capitalize() else title


def nodes_section(nodes: dict[str, Any]) -> str:
    """A table of the nodes by their place in the menu."""
    ordered = sorted(nodes.values(), key=lambda info: (info["category"], info["display_name"]))
    rows = [
        f"| {info['category'].partition('/')[2]} | [{info['display_name']}](web/docs/{info['name']}.md) | "
        f"{' '.join(info['description'].split())} |"
        for info in ordered
    ]
    return "\n".join(["| stage | node | what it does |", "|---|---|---|", *rows])

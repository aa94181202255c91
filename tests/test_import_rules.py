"""The folders' import rules, read from the syntax tree."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACK = {
    "vlm": set(),
    "dit": set(),
    "samplers": set(),
    "training": {"dit", "samplers", "vlm"},
    "model_loaders": {"vlm", "dit"},
    "nodes": {"vlm", "dit", "samplers", "training", "model_loaders"},
    "host": set(),
}
COMFYUI = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "folder_paths",
    "nodes",
    "server",
    "node_helpers",
}
MAY_IMPORT_COMFYUI = {"model_loaders", "nodes"}
HEAVY = {"diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "torchao"}
BANNED_NAMES = {"utils", "helpers", "common", "misc"}


def imports_of(tree: ast.AST, depth: int) -> tuple[set[str], set[str]]:
    """(folders of the pack, top-level outside modules) that a file `depth` folders deep imports."""
    inside, outside = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level == depth + 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            inside |= {name.split(".")[0] for name in names}
    return inside, outside


def faults_in(source: str, folder: str, depth: int) -> list[str]:
    inside, outside = imports_of(ast.parse(source), depth)
    faults = [f"imports {name}" for name in sorted((inside & PACK.keys()) - PACK[folder] - {folder})]
    if folder not in MAY_IMPORT_COMFYUI:
        faults += [f"imports ComfyUI's {name}" for name in sorted(outside & COMFYUI)]
    if folder == "host":
        faults += [f"imports {name}" for name in sorted(outside - sys.stdlib_module_names)]
    return faults


@pytest.mark.parametrize("folder", PACK)
def test_folder_keeps_the_import_rules(folder: str) -> None:
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        depth = len(path.relative_to(ROOT).parts) - 1
        found += [f"{path.relative_to(ROOT)} {fault}" for fault in faults_in(path.read_text(), folder, depth)]
        if path.stem in BANNED_NAMES:
            found.append(f"{path.relative_to(ROOT)} has a name that says nothing")
    assert not found


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("dit", "import comfy.samplers"),
        ("dit", "from .. import samplers"),
        ("vlm", "from ..dit import positions"),
        ("training", "from ..nodes.types import Run"),
        ("samplers", "from comfy_api.latest import io"),
        ("host", "import torch"),
    ],
)
def test_a_forbidden_import_is_found(folder: str, source: str) -> None:
    assert faults_in(source, folder, 1)


def test_the_entry_module_imports_nothing_of_the_host() -> None:
    top_level = ast.parse((ROOT / "__init__.py").read_text()).body
    names = {alias.name for node in top_level if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in top_level if isinstance(node, ast.ImportFrom)}
    assert names == {"__future__", "typing"}


def loaded_with(path: Path) -> tuple[set[Path], set[str]]:
    """(files of the pack, top-level outside modules) that importing a file of the pack loads."""
    files, outside, waiting = set(), set(), [path]
    while waiting:
        path = waiting.pop()
        if path in files:
            continue
        files.add(path)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                outside |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                outside.add((node.module or "").split(".")[0])
            elif isinstance(node, ast.ImportFrom):
                place = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                names = [place.with_suffix(".py"), place / "__init__.py"]
                names += [place / f"{alias.name}.py" for alias in node.names]
                waiting += [name for name in names if name.is_file()]
    return files, outside


def test_nodes_may_ask_a_family_without_loading_a_heavy_library() -> None:
    from pack.training.families import FAMILIES

    folder = ROOT / "training" / "families"
    for name in ("__init__", *FAMILIES):
        files, outside = loaded_with(folder / f"{name}.py")
        assert folder / "base.py" in files
        assert not outside & HEAVY, f"{name} loads {', '.join(outside & HEAVY)}"

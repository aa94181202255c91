"""The folders' import rules, read from the syntax tree."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import HOST

ROOT = Path(__file__).resolve().parent.parent


class Rule(NamedTuple):
    """What the files of a folder may import besides their own folder and Python's standard library."""

    folders: frozenset[str] = frozenset()
    libraries: frozenset[str] | None = frozenset()
    """Top-level modules; None is any."""
    comfyui: bool = False


def rule(folders: str = "", libraries: str | None = None, comfyui: bool = False) -> Rule:
    named = None if libraries is None else frozenset(libraries.split())
    return Rule(frozenset(folders.split()), named, comfyui)


RULES = {
    "vlm": rule(libraries="numpy PIL torch transformers"),
    "dit": rule(libraries="numpy PIL safetensors torch"),
    "samplers": rule(libraries="scipy torch tqdm"),
    "model_loaders": rule("vlm dit", comfyui=True),
    "training": rule("vlm dit samplers"),
    "nodes": rule("vlm dit samplers model_loaders training", comfyui=True),
    "host": rule(libraries=""),
}
"""CONTRIBUTING.md's third column. bench/ may import everything, and nothing may import bench/ or tests/."""
SCRIPTS = {"host": ("dev.py",)}
"""Files of the repository's root that belong to a folder."""
OURS = {*RULES, "bench", "tests"}
COMFYUI = {
    "alembic_db",
    "api_server",
    "app",
    "comfy",
    "comfy_api",
    "comfy_api_nodes",
    "comfy_config",
    "comfy_execution",
    "comfy_extras",
    "comfyui_version",
    "cuda_malloc",
    "custom_nodes",
    "execution",
    "folder_paths",
    "latent_preview",
    "main",
    "middleware",
    "new_updater",
    "node_helpers",
    "nodes",
    "protocol",
    "server",
    "utils",
}
HEAVY = {"diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "torchao"}
BANNED_NAMES = {"utils", "helpers", "common", "misc"}


def top_level_of(host: Path | None) -> set[str]:
    """The modules that a ComfyUI tree puts on Python's path: a newer one may have more than the list."""
    if host is None:
        return set()
    return {path.stem for path in host.glob("*.py")} | {path.parent.name for path in host.glob("*/*.py")}


OF_COMFYUI = (COMFYUI | top_level_of(HOST)) - (OURS - {"nodes"})


def imports_of(tree: ast.AST, depth: int) -> tuple[set[str], set[str]]:
    """(what lies in the pack's root, top-level outside modules) that a file `depth` folders deep imports."""
    inside, outside = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level == depth + 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            inside |= {name.split(".")[0] for name in names}
        elif isinstance(node, ast.ImportFrom) and node.level > depth + 1:
            inside.add("what lies above the pack")
    return inside, outside


def faults_in(source: str, folder: str, depth: int) -> list[str]:
    allowed = RULES[folder]
    inside, outside = imports_of(ast.parse(source), depth)
    if depth == 0:  # a script finds the folders beside it by their bare names
        inside, outside = inside | (outside & OURS), outside - OURS
    faults = [f"imports {name}" for name in sorted(inside - allowed.folders - {folder})]
    # ComfyUI does not put the pack on the path: a bare name is another's module there, or none.
    faults += [f"imports {name} by its bare name" for name in sorted(outside & OURS - OF_COMFYUI)]
    if not allowed.comfyui:
        faults += [f"imports ComfyUI's {name}" for name in sorted(outside & OF_COMFYUI)]
    if allowed.libraries is not None:
        libraries = outside - OF_COMFYUI - OURS - sys.stdlib_module_names
        faults += [f"imports {name}" for name in sorted(libraries - allowed.libraries)]
    return faults


def files_of(folder: str) -> Iterator[Path]:
    yield from sorted((ROOT / folder).rglob("*.py"))
    yield from (ROOT / name for name in SCRIPTS.get(folder, ()))


@pytest.mark.parametrize("folder", RULES)
def test_folder_keeps_the_import_rules(folder: str) -> None:
    found = []
    for path in files_of(folder):
        depth = len(path.relative_to(ROOT).parts) - 1
        found += [f"{path.relative_to(ROOT)} {fault}" for fault in faults_in(path.read_text(), folder, depth)]
        if path.stem in BANNED_NAMES:
            found.append(f"{path.relative_to(ROOT)} has a name that says nothing")
    assert not found


@pytest.mark.parametrize(
    ("folder", "source", "depth"),
    [
        ("dit", "import comfy.samplers", 1),
        ("dit", "from .. import samplers", 1),
        ("dit", "import diffusers", 1),
        ("vlm", "from ..dit import positions", 1),
        ("vlm", "import safetensors", 1),
        ("training", "from ..nodes.types import Run", 1),
        ("training", "from ...bench.harness import Table", 2),
        ("training", "import latent_preview", 1),
        ("training", "from execution import PromptExecutor", 1),
        ("training", "from ..host import places", 1),
        ("samplers", "from comfy_api.latest import io", 1),
        ("samplers", "import numpy", 1),
        ("nodes", "from ..bench import harness", 1),
        ("nodes", "from ..tests.support import x", 1),
        ("nodes", "from .. import dev", 1),
        ("nodes", "from .. import *", 1),
        ("nodes", "from ... import other_pack", 1),
        ("nodes", "import bench.harness", 1),
        ("nodes", "from tests.support import x", 1),
        ("training", "import tests.support", 1),
        ("nodes", "from dit.forward import x", 1),
        ("model_loaders", "from ..nodes.types import Run", 1),
        ("host", "import torch", 1),
        ("host", "from ..training import presets", 1),
        ("host", "import torch", 0),
        ("host", "from training import presets", 0),
        ("host", "from bench.run import main", 0),
    ],
)
def test_a_forbidden_import_is_found(folder: str, source: str, depth: int) -> None:
    assert len(faults_in(source, folder, depth)) == 1


@pytest.mark.parametrize(
    ("folder", "source", "depth"),
    [
        ("host", "from host.places import ROOT", 0),
        ("host", "from .places import ROOT", 1),
        ("nodes", "from nodes import MAX_RESOLUTION", 1),
        ("nodes", "from ..nodes.types import Run", 1),
        ("training", "from ...dit import packing", 2),
    ],
)
def test_an_allowed_import_is_no_fault(folder: str, source: str, depth: int) -> None:
    assert not faults_in(source, folder, depth)


def third_column() -> dict[str, set[str]]:
    """Folder -> what CONTRIBUTING.md says that it may import."""
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|") for line in lines if line.startswith("| `")]
    return {name.split("`")[1].strip("/"): set(column.strip().split(", ")) for _, name, _, column, _ in rows}


@pytest.mark.parametrize("folder", RULES)
def test_contributing_says_the_rules(folder: str) -> None:
    allowed = RULES[folder]
    said = {*allowed.folders, *(["ComfyUI"] if allowed.comfyui else [])}
    if allowed.libraries is None:
        said.add("any library")
    else:
        said |= {"Pillow" if name == "PIL" else name for name in allowed.libraries}
    assert third_column()[folder] == (said or {"standard library"})


def test_what_nobody_imports_is_what_users_do_not_get() -> None:
    left_out = (ROOT / ".comfyignore").read_text().split()
    assert {f"{name}/" for name in OURS - RULES.keys()} <= set(left_out)


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

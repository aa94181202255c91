"""Scripts that are started by their path load the pack, whatever is on the path and wherever they lie."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOADER = "training/pack_loader.py"
FIRST_LOADED = {
    "training/worker.py": "training.process",
    "training/recipes/run.py": "training.recipes.command",
    "training/synthesis/worker.py": "training.synthesis.generate",
    "bench/run.py": "bench.harness",
}
"""Script -> the module of the pack that it loads first."""
STAND_IN = """
import importlib.util, json, sys
print(json.dumps([__name__, sys.path, importlib.util.find_spec("nodes") is None]))
sys.exit()
"""


@pytest.mark.parametrize("flags", [[], ["-I", "-S"]], ids=["usual", "isolated"])
@pytest.mark.parametrize("script", FIRST_LOADED)
def test_a_script_loads_the_pack_and_leaves_no_folder_of_it_on_the_path(
    tmp_path: Path, script: str, flags: list[str]
) -> None:
    """Isolated, as ComfyUI's portable Python is, a script's folder never was there; -S hides all packages."""
    tree, module = tmp_path / "a pack, ünnamed", FIRST_LOADED[script]
    for name in (script, LOADER):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tree / name)
    (tree / "nodes").mkdir()
    for name in ("__init__.py", "nodes/__init__.py"):
        (tree / name).touch()
    (tree / f"{module.replace('.', '/')}.py").write_text(STAND_IN)
    ended = subprocess.run(
        [sys.executable, *flags, str(tree / script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in ("COMFYUI_DIR", "PYTHONPATH")},
    )
    assert ended.returncode == 0, ended.stderr
    loaded_as, places, no_nodes = json.loads(ended.stdout)
    assert loaded_as.split(".", 1)[1] == module
    assert not [place for place in places if Path(place).is_relative_to(tree)]
    assert no_nodes, "the pack's nodes would hide ComfyUI's"


def test_how_the_pack_is_loaded_is_written_once() -> None:
    files = [*ROOT.glob("*.py"), *(ROOT / "tests").glob("*.py")]
    for folder in ("training", "bench", "host", "nodes", "model_loaders", "samplers", "dit", "vlm"):
        files += (ROOT / folder).rglob("*.py")
    marked = {path for path in files if "submodule_search_locations" in path.read_text(encoding="utf-8")}
    # The second stands for ComfyUI's own loader.
    assert marked == {ROOT / LOADER, ROOT / "tests/test_pack_loads.py"}

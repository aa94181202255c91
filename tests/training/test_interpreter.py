"""A ComfyUI that hides the user's own packages hides them from the processes it starts, too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARENT = """
import json, runpy, subprocess, sys
root, child = sys.argv[1:3]
runpy.run_path(root + "/training/pack_loader.py")["load_pack"]("pack", root + "/dev.py")
"""
STARTS = {
    "training": """
from pathlib import Path
from pack.training.launch import Worker
worker = Worker(Path(root))
command, environment = [*worker.command()[:-2], child], worker.environment
child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
""",
    "drawing": """
from types import SimpleNamespace
from pack.training.synthesis import processes
processes.WORKER = child
child = processes.start_worker(SimpleNamespace(to_json=dict), [])
""",
}
CHILD = """
import subprocess, sys
flags = [sys.flags.no_user_site]
if len(sys.argv) < 2:
    own = [sys.executable, __file__, "grandchild"]
    flags += [int(subprocess.run(own, capture_output=True, text=True).stdout)]
print(*flags)
"""


@pytest.mark.parametrize(("start", "hidden"), [("training", True), ("drawing", True), ("drawing", False)])
def test_children_and_their_children_see_the_packages_that_the_parent_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str, hidden: bool
) -> None:
    monkeypatch.delenv("PYTHONNOUSERSITE", raising=False)
    (tmp_path / "child.py").write_text(CHILD)
    code = PARENT + STARTS[start] + "print(json.dumps([child.args, child.stdout.read().split()]))"
    parent = [sys.executable, *(["-s"] if hidden else []), "-c", code, str(ROOT), str(tmp_path / "child.py")]
    result = subprocess.run(parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    command, flags = json.loads(result.stdout)
    assert command[:-1] == [sys.executable, *(["-s"] if hidden else [])]
    assert flags == [str(int(hidden))] * 2

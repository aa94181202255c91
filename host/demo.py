"""From nothing to a picture: the shipped edit workflow on a real server, with models made on the spot."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from .client import Client
from .environment import child_environment
from .places import DEMO_BASE, OUTPUT, PACK_FOLDER, ROOT, SetupError, environment_program
from .prompt import workflow_to_prompt
from .server import Server, has_gpu
from .standins import adapt, adapt_workflow

WORKFLOW = "edit-with-references"
DEMO_NODES = DEMO_BASE / "custom_nodes" / "demo"
TEMPLATES = DEMO_NODES / "workflows"
HONEST_WORD = (
    "The model behind this picture is a tiny random network made on this machine, so the picture is noise.\n"
    "It shows that everything is in place; for real pictures put the models of the README into ComfyUI."
)


def run_demo(*, serve: bool, port: int) -> int:
    """Run the workflow, leave its picture in output/, with `serve` stay open; an exit code."""
    TEMPLATES.mkdir(parents=True, exist_ok=True)
    workflow = json.loads((ROOT / "workflows" / f"{WORKFLOW}.json").read_text())
    shutil.copytree(ROOT / "tests" / "e2e" / "standin_nodes", DEMO_NODES, dirs_exist_ok=True)
    rules = make_stand_ins()
    print("Starting ComfyUI ...", flush=True)
    with Server(DEMO_BASE, cpu=not has_gpu(), port=port if serve else None, output=OUTPUT) as server:
        object_info = server.client.object_info()
        prompt = adapt(workflow_to_prompt(workflow, object_info), rules)
        outputs = server.client.run(prompt, workflow)
        for path in picture_files(outputs):
            print(f"Picture: {path}")
        print(HONEST_WORD)
        if serve:
            write_template(adapt_workflow(workflow, rules, object_info))
            address = template_address(server.client, DEMO_NODES.name)
            print(f"\nComfyUI is open with the workflow loaded: {address}")
            print("Ctrl+C ends it.", flush=True)
            stay_open()
    return 0


def make_stand_ins() -> dict[str, Any]:
    """Write tiny models and pictures for the workflow; return how its prompt has to be changed."""
    print("Making a tiny random Kontext ...", flush=True)
    command = [environment_program("python"), ROOT / "tests" / "e2e" / "standins", WORKFLOW, DEMO_BASE]
    result = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    if result.returncode:
        raise SetupError(f"could not make the models:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def picture_files(outputs: dict[str, Any]) -> list[Path]:
    """Where the pictures of a prompt lie."""
    entries = [entry for node in outputs.values() for entry in node.get("images", [])]
    return [OUTPUT / entry["subfolder"] / entry["filename"] for entry in entries if entry["type"] == "output"]


def write_template(workflow: dict[str, Any]) -> None:
    """Offer the workflow, on the demo's models, as a template of the demo's own nodes."""
    (TEMPLATES / f"{WORKFLOW}.json").write_text(json.dumps(workflow))


def template_address(client: Client, source: str = PACK_FOLDER) -> str:
    """The address that opens the frontend with the workflow of the pack, or of the demo's nodes."""
    return f"{client.url}/?template={WORKFLOW}&source={source}"


def stay_open() -> None:
    """Return when the user presses Ctrl+C."""
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print()

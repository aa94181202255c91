"""From nothing to a picture: the shipped edit workflow on a real server, with models made on the spot."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from .client import Client
from .environment import child_environment
from .places import DEMO_BASE, OUTPUT, ROOT, SetupError, environment_program
from .prompt import workflow_to_prompt
from .server import Server, has_gpu, link_folder
from .standins import adapt

WORKFLOW = "edit-with-references"
HONEST_WORD = (
    "The model behind this picture is a tiny random network made on this machine, so the picture is noise.\n"
    "It shows that everything is in place; for real pictures put the models of the README into ComfyUI."
)


def run_demo(*, serve: bool, port: int) -> int:
    """Run the workflow, leave its picture in output/, with `serve` stay open; an exit code."""
    workflow = json.loads((ROOT / "workflows" / f"{WORKFLOW}.json").read_text())
    link_folder(ROOT / "tests" / "e2e" / "standin_nodes", DEMO_BASE / "custom_nodes" / "standin_nodes")
    rules = make_stand_ins()
    print("Starting ComfyUI ...", flush=True)
    with Server(DEMO_BASE, cpu=not has_gpu(), port=port if serve else None, output=OUTPUT) as server:
        prompt = adapt(workflow_to_prompt(workflow, server.client.object_info()), rules)
        outputs = server.client.run(prompt, workflow)
        for path in picture_files(outputs):
            print(f"Picture: {path}")
        print(HONEST_WORD)
        if serve:
            print(f"\nComfyUI is open with the workflow loaded: {template_address(server.client)}")
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


def template_address(client: Client) -> str:
    """The address that opens the frontend with the workflow loaded."""
    return f"{client.url}/?template={WORKFLOW}&source=dreamomni"


def stay_open() -> None:
    """Return when the user presses Ctrl+C."""
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print()

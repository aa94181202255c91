"""One real ComfyUI server for the whole run, with every shipped workflow's stand-ins in place."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adapted_prompt import adapt
from pack.host.client import Client, Prompt, PromptError, describe_failure
from pack.host.places import ROOT
from pack.host.prompt import workflow_to_prompt
from pack.host.server import Server, link_folder, prepare_base

WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


def read_workflow(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text())


class LiveServer:
    """The server, what it knows about its nodes, and the prompts of the shipped workflows on stand-ins."""

    def __init__(self, server: Server) -> None:
        from standins import stand_ins

        self.server = server
        self.client: Client = server.client
        self.url = server.url
        self.object_info = self.client.object_info()
        self.stand_ins = stand_ins()
        self.prepared = ""

    def prompt(self, name: str) -> Prompt:
        """The prompt of a shipped workflow, on its stand-ins, which are written on the way."""
        stand_in = self.stand_ins.get(name)
        assert stand_in is not None, f"workflows/{name}.json needs a StandIn in tests/e2e/standins"
        workflow = read_workflow(name)
        if self.prepared != name:
            stand_in.prepare(self.server.base, workflow)
            self.prepared = name
        return adapt(workflow_to_prompt(workflow, self.object_info), stand_in.rules())

    def run_anew(self, prompt: Prompt, workflow: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run every node of a prompt, nothing from the cache, and return the outputs."""
        for _ in range(5):
            self.client.forget()
            time.sleep(0.3)
            entry = self.client.wait(self.client.queue(prompt, workflow))
            failure = describe_failure(entry)
            if failure:
                raise PromptError(f"{failure}\n{self.server.log_tail(60)}")
            cached = dict(entry["status"]["messages"])["execution_cached"]["nodes"]
            if not cached:
                return entry["outputs"]
        raise AssertionError(f"nodes {cached} were not run again")

    def pictures(self, outputs: dict[str, Any]) -> list[bytes]:
        """The PNG files of an output, in a fixed order."""
        entries = [entry for node in sorted(outputs) for entry in outputs[node].get("images", [])]
        return [self.client.picture(entry) for entry in entries]


# The missing-models dialog asks the models' hosts for file sizes, which tests must not.
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False}


@pytest.fixture(scope="session")
def live_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    base: Path = tmp_path_factory.mktemp("comfyui")
    link_folder(ROOT / "tests" / "e2e" / "standin_nodes", base / "custom_nodes" / "standin_nodes")
    prepare_base(base)
    (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(SETTINGS))
    with Server(base) as server:
        yield LiveServer(server)

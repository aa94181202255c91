"""Talks to a ComfyUI server over HTTP."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

Prompt = dict[str, dict[str, Any]]
POLL_SECONDS = 0.1
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A proxy for the way to the network has nothing to do with a server on this machine."""


class PromptError(RuntimeError):
    """The server refused a prompt or failed while it ran; the message is the server's."""


class Client:
    """One server, by its address such as http://127.0.0.1:8188."""

    def __init__(self, url: str) -> None:
        self.url = url

    def request(self, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        """The answer to a GET, or to a POST if there is a body."""
        request = urllib.request.Request(self.url + path, data=body, headers={"Content-Type": kind})
        with DIRECT.open(request, timeout=120) as response:
            return response.read()

    def get(self, path: str) -> Any:
        """The JSON that a GET returns."""
        return json.loads(self.request(path))

    def post(self, path: str, value: Any) -> Any:
        """The JSON that a POST of JSON returns, None if it returns nothing."""
        answer = self.request(path, json.dumps(value).encode())
        return json.loads(answer) if answer.strip() else None

    def object_info(self) -> dict[str, Any]:
        """Everything the server knows about its nodes, by class."""
        return self.get("/object_info")

    def queue(self, prompt: Prompt, workflow: dict[str, Any] | None = None) -> str:
        """Queue a prompt and return its id; PromptError holds the server's reasons if it refuses."""
        extra = {"extra_pnginfo": {"workflow": workflow}} if workflow else {}
        try:
            return self.post("/prompt", {"prompt": prompt, "extra_data": extra})["prompt_id"]
        except urllib.error.HTTPError as err:
            raise PromptError(describe_refusal(err.read().decode())) from err

    def wait(self, prompt_id: str, seconds: float = 600) -> dict[str, Any]:
        """The history entry of a prompt that has ended, whichever way; TimeoutError if it has not by then."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return entry
            time.sleep(POLL_SECONDS)
        raise TimeoutError(f"prompt {prompt_id} was not finished after {seconds:.0f} s")

    def run(
        self, prompt: Prompt, workflow: dict[str, Any] | None = None, seconds: float = 600
    ) -> dict[str, Any]:
        """Run a prompt and return its outputs by node; PromptError if it did not succeed."""
        entry = self.wait(self.queue(prompt, workflow), seconds)
        failure = describe_failure(entry)
        if failure:
            raise PromptError(failure)
        return entry["outputs"]

    def interrupt(self) -> None:
        """Stop what runs."""
        self.post("/interrupt", {})

    def forget(self) -> None:
        """Drop cached results and loaded models, so that the next prompt runs every node."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def picture(self, entry: dict[str, str]) -> bytes:
        """The file behind an `images` entry of the outputs."""
        return self.request("/view?" + urllib.parse.urlencode(entry))


def describe_refusal(answer: str) -> str:
    """The reasons in the body of a 400 answer to /prompt, one a line."""
    try:
        refusal = json.loads(answer)
    except json.JSONDecodeError:
        return answer
    lines = [str(refusal.get("error", {}).get("message", refusal))]
    for node, faults in (refusal.get("node_errors") or {}).items():
        lines += [
            f"node {node} ({faults['class_type']}): {fault['message']}: {fault['details']}"
            for fault in faults["errors"]
        ]
    return "\n".join(lines)


def describe_failure(entry: dict[str, Any]) -> str:
    """What went wrong in a history entry; empty if nothing did."""
    for name, details in entry.get("status", {}).get("messages", []):
        if name == "execution_error":
            return f"{details['node_type']}: {details['exception_type']}: {details['exception_message']}"
        if name == "execution_interrupted":
            return f"interrupted in {details['node_type']}"
    return ""

"""Every shipped workflow on a real server, with models of a few megabytes: stand-ins, or the shipped one."""

from __future__ import annotations

import io
import json
import time

import numpy as np
import pytest
from live_server import WORKFLOWS, LiveServer, read_workflow
from pack.host.client import Prompt, describe_failure
from PIL import Image

pytestmark = pytest.mark.e2e
SEEDS = ("seed", "noise_seed")


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def check_metadata(name: str, prompt: Prompt, outputs: dict, live_server: LiveServer) -> None:
    """Saved pictures can be dragged back into ComfyUI: they carry the prompt and the workflow."""
    for number, node in prompt.items():
        if node["class_type"] == "SaveImage":
            entry = outputs[number]["images"][0]
            assert entry["type"] == "output"
            text = Image.open(io.BytesIO(live_server.client.picture(entry))).text
            assert json.loads(text["prompt"]).keys() == prompt.keys()
            assert json.loads(text["workflow"])["nodes"] == read_workflow(name)["nodes"]


def with_other_seed(prompt: Prompt) -> Prompt:
    changed = json.loads(json.dumps(prompt))
    for node in changed.values():
        node["inputs"] |= {name: 12345 for name in SEEDS if name in node["inputs"]}
    return changed


@pytest.mark.parametrize("name", WORKFLOWS)
def test_runs_and_gives_the_same_picture_for_one_seed(name: str, live_server: LiveServer) -> None:
    prompt = live_server.prompt(name)
    outputs = live_server.run_anew(prompt, read_workflow(name))
    check_metadata(name, prompt, outputs, live_server)
    first = live_server.pictures(outputs)
    assert all(pixels(png).std() > 1 for png in first), "a flat picture"
    stand_in = live_server.stand_ins[name]
    if stand_in.repeatable:
        second = live_server.pictures(live_server.run_anew(prompt))
        assert [pixels(png).tolist() for png in second] == [pixels(png).tolist() for png in first]
    if stand_in.needs_seed and first:
        other = live_server.pictures(live_server.run_anew(with_other_seed(prompt)))
        assert any(not np.array_equal(pixels(a), pixels(b)) for a, b in zip(first, other, strict=True))


def test_the_four_position_encodings_give_four_pictures(live_server: LiveServer) -> None:
    outputs = live_server.client.run(live_server.prompt("position-encoding-comparison"))
    found = {pixels(png).tobytes() for png in live_server.pictures(outputs)}
    assert len(found) == 4


def test_the_task_chooses_the_lora(live_server: LiveServer) -> None:
    prompt = live_server.prompt("edit-with-references")
    pictures = []
    for task in ("edit", "generate"):
        for node in prompt.values():
            node["inputs"] |= {"task": task} if node["class_type"] == "DreamOmniReferenceSet" else {}
        pictures += live_server.pictures(live_server.client.run(prompt))
    assert not np.array_equal(*map(pixels, pictures))


def test_cancel_stops_within_a_second_and_the_next_prompt_runs(live_server: LiveServer) -> None:
    prompt = live_server.prompt("edit-with-references")
    endless = json.loads(json.dumps(prompt))
    for node in endless.values():
        node["inputs"] |= {"steps": 5000} if "steps" in node["inputs"] else {}
    client = live_server.client
    # With everything before the sampler cached, the sampler is what gets interrupted.
    client.run(prompt)
    taken = []
    for _ in range(3):
        running = client.queue(endless)
        while not client.get("/queue")["queue_running"]:
            time.sleep(0.05)
        time.sleep(2)
        start = time.monotonic()
        client.interrupt()
        entry = client.wait(running)
        taken.append(time.monotonic() - start)
        assert describe_failure(entry) == "interrupted in SamplerCustomAdvanced"
        if taken[-1] < 1:
            break
    assert min(taken) < 1
    assert live_server.pictures(live_server.run_anew(prompt))

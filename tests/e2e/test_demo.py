"""The demo on a real server: its rows and sheet, and the same picture by either sampler node."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from live_server import LiveServer
from pack.host import demo
from pack.host.client import Prompt
from PIL import Image

pytestmark = pytest.mark.e2e


def pixels(picture: bytes | Path) -> np.ndarray:
    opened = Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture)
    return np.asarray(opened.convert("RGB"))


def test_the_demo_answers_every_case_and_draws_a_sheet(live_server: LiveServer, tmp_path: Path) -> None:
    for name in (demo.EDIT, demo.SWITCH):
        live_server.prompt(name)
    rows = list(demo.demo_rows(live_server.server))
    assert len(rows) == len(demo.read_cases()) + 1
    for row in rows:
        pictures = dict(row["pictures"])
        assert next(iter(pictures)) == "picture 1" and list(pictures)[-1] == "right answer"
        results = [
            pixels(Path(path)) for name, path in pictures.items() if name == "result" or name.endswith("LoRA")
        ]
        assert len(results) == (3 if row["heading"] == demo.SWITCH else 1)
        for result in results:
            assert result.shape == (256, 256, 3)
            # Every pixel of the sampled 32 x 32 is a square.
            assert np.array_equal(result, result[::8, ::8].repeat(8, 0).repeat(8, 1))
    sheet = Image.open(demo.draw_sheet(rows, tmp_path / "sheet.jpg"))
    assert sheet.format == "JPEG" and sheet.width > 800 and sheet.height > len(rows) * 160


def test_the_switch_gives_three_pictures(live_server: LiveServer) -> None:
    found = saved_pixels(live_server, live_server.prompt(demo.SWITCH))
    assert len({picture.tobytes() for picture in found}) == 3


def by_the_other_sampler(prompt: Prompt) -> Prompt:
    """KSampler taken apart into the nodes around SamplerCustomAdvanced."""
    changed = dict(prompt)
    for number, node in prompt.items():
        if node["class_type"] == "KSampler":
            old = node["inputs"]
            parts = {
                "noise": ("RandomNoise", {"noise_seed": old["seed"]}),
                "guider": ("BasicGuider", {"model": old["model"], "conditioning": old["positive"]}),
                "sampler": ("KSamplerSelect", {"sampler_name": old["sampler_name"]}),
                "sigmas": (
                    "BasicScheduler",
                    {name: old[name] for name in ("model", "scheduler", "steps", "denoise")},
                ),
            }
            for name, (kind, inputs) in parts.items():
                changed[f"{number}-{name}"] = {"class_type": kind, "inputs": inputs}
            links = {name: [f"{number}-{name}", 0] for name in parts}
            inputs = {**links, "latent_image": old["latent_image"]}
            changed[number] = {"class_type": "SamplerCustomAdvanced", "inputs": inputs}
    return changed


def saved_pixels(live_server: LiveServer, prompt: Prompt) -> list[np.ndarray]:
    outputs = live_server.run_anew(prompt)
    saved = sorted(key for key, node in prompt.items() if node["class_type"] == "SaveImage")
    return [pixels(live_server.client.picture(outputs[key]["images"][0])) for key in saved]


@pytest.mark.parametrize("name", [demo.EDIT, demo.SWITCH])
def test_both_sampler_nodes_give_the_same_picture(name: str, live_server: LiveServer) -> None:
    prompt = live_server.prompt(name)
    other = by_the_other_sampler(prompt)
    assert "KSampler" not in {node["class_type"] for node in other.values()}
    for one, two in zip(saved_pixels(live_server, prompt), saved_pixels(live_server, other), strict=True):
        assert np.array_equal(one, two)

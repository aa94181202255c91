"""Example Picture gives the shipped pictures, and only those."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.host


def test_every_offered_picture_is_given_in_its_own_size() -> None:
    from pack.nodes.example import ExamplePicture, example_names, pictures_folder, read_example

    names = example_names()
    assert ExamplePicture.define_schema().inputs[0].options == names
    assert len(names) >= 6
    assert not [name for name in names if name.endswith(".target")]
    for name in names:
        image = read_example(name)
        assert image.shape == ((1, 32, 32, 3) if name.endswith(".source") else (1, 24, 24, 3))
        assert image.dtype == torch.float32
        drawn = np.asarray(Image.open(pictures_folder() / f"{name}.png").convert("RGB"))
        assert np.array_equal((image[0].numpy() * 255).round().astype(np.uint8), drawn)


def test_every_demo_workflow_names_pictures_there_are() -> None:
    from pack.nodes.example import example_names

    workflows = sorted((Path(__file__).parents[2] / "workflows").glob("demo-*.json"))
    assert len(workflows) == 4
    for path in workflows:
        nodes = json.loads(path.read_text("utf-8"))["nodes"]
        named = {n["widgets_values"][0] for n in nodes if n["type"] == "DreamOmniExamplePicture"}
        assert named and named <= set(example_names()), path.name


@pytest.mark.parametrize("name", ["gone", "../README", "", "/etc/hosts"])
def test_another_name_is_refused_with_the_known_ones(name: str) -> None:
    from pack.nodes.example import ExamplePicture, example_names

    with pytest.raises(FileNotFoundError, match=r"the pack has no example picture .*; it has: ") as caught:
        ExamplePicture.execute(name)
    assert example_names()[0] in str(caught.value)


def test_what_is_shown_has_every_pixel_as_a_square() -> None:
    from pack.nodes.example import enlarged

    picture = torch.rand(1, 32, 48, 3)
    shown = enlarged(picture)
    assert shown.shape == (1, 256, 384, 3)
    assert torch.equal(shown[:, ::8, ::8], picture)
    assert torch.equal(shown[:, 7::8, 7::8], picture)


def test_a_pack_without_pictures_offers_none_and_says_so(models_dir: Path) -> None:
    from pack.nodes.example import ExamplePicture, example_names

    assert example_names() == []
    with pytest.raises(FileNotFoundError, match=r"picture 'gone'; it has: none\. Choose one of them"):
        ExamplePicture.execute("gone")

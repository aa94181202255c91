"""Transparent parts of pictures, from ComfyUI's own Load Image to the reference nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pack.host.places import ROOT
from PIL import Image

pytestmark = pytest.mark.host


def as_reference(image: torch.Tensor) -> torch.Tensor:
    """The picture as Reference Images hands it on."""
    from pack.nodes.references import ReferenceSetNode

    return ReferenceSetNode.execute("edit", "none", image_1=image).args[0].images[0]


@pytest.fixture
def input_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty input folder for Load Image."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    return tmp_path


def test_load_image_needs_join_image_with_alpha_for_white(input_dir: Path) -> None:
    from comfy_extras.nodes_compositing import JoinImageWithAlpha
    from pack.nodes.dreamomni import MaskedSource

    import nodes

    logo = Image.new("RGBA", (32, 48), (0, 0, 0, 0))
    logo.paste((255, 0, 0, 255), (16, 0, 32, 48))
    logo.save(input_dir / "logo.png")
    image, mask = nodes.LoadImage().load_image("logo.png")
    joined = JoinImageWithAlpha.execute(image, mask).args[0]
    white, black, red = torch.ones(3), torch.zeros(3), torch.tensor([1.0, 0.0, 0.0])
    for given, seen in ((image, black), (joined, white)):
        as_source = MaskedSource.execute(given, None, right=8).args[0]
        for result in (as_reference(given), as_source):
            assert torch.equal(result[0, :, :16], seen.expand(48, 16, 3))
            assert torch.equal(result[0, :, 16:32], red.expand(48, 16, 3))


def test_join_image_with_alpha_leaves_an_opaque_picture_as_it_is(input_dir: Path) -> None:
    from comfy_extras.nodes_compositing import JoinImageWithAlpha

    import nodes

    Image.new("RGB", (32, 48), (0, 51, 255)).save(input_dir / "photo.png")
    image, mask = nodes.LoadImage().load_image("photo.png")
    joined = JoinImageWithAlpha.execute(image, mask).args[0]
    assert torch.equal(as_reference(joined), image)


@pytest.mark.parametrize(
    "path",
    [
        "web/docs/DreamOmniReferenceSet.md",
        "web/docs/DreamOmniMaskedSource.md",
        "workflows/edit-with-references.json",
        "workflows/generate-from-references.json",
    ],
)
def test_the_user_is_told_what_becomes_of_transparent_parts(path: str) -> None:
    text = " ".join((ROOT / path).read_text(encoding="utf-8").split())
    assert "put *Join Image with Alpha* behind it" in text
    assert "(its image and its mask), else what lies under" in text

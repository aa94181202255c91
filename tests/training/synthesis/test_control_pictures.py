"""Control pictures of a sample: edges, segments, depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn_samples import samples, synthesizer
from pack.training.synthesis.config import recipe_for
from pack.training.synthesis.edges import canny
from pack.training.synthesis.samples import Synthesizer
from PIL import Image, ImageFilter


def test_control_maps() -> None:
    (canny,) = samples("control_canny", 1, width=128, height=128)
    assert canny.references[0].shape == canny.target.shape and set(np.unique(canny.references[0])) == {0, 255}
    (segments,) = samples("control_segmentation", 1, width=128, height=128)
    colours = {tuple(colour) for colour in segments.references[0].reshape(-1, 3)}
    assert len(colours) == 1 + len(segments.plan.target.objects)


def test_edges_come_from_whichever_package_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    picture = samples("control_canny", 1, width=128, height=128)[0].target
    drawn = {}
    for hidden, package in (("cv2", "skimage"), ("skimage", "cv2")):
        if found(package) is None:
            continue
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, hidden=hidden: None if name == hidden else found(name)
        )
        drawn[package] = canny(picture)[..., 0] > 0
        assert 0.005 < drawn[package].mean() < 0.2
    assert drawn
    if len(drawn) == 2:
        # Both find the same outlines, within a pixel or two.
        near = np.asarray(Image.fromarray(drawn["cv2"]).convert("L").filter(ImageFilter.MaxFilter(5))) > 0
        assert near[drawn["skimage"]].mean() > 0.9


def test_a_missing_edge_detector_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"control_canny needs opencv-python-headless or scikit-image: pip"):
        synthesizer("control_canny")
    assert "control_canny" not in Synthesizer(recipe_for(64, 64)).weights


def test_depth_comes_from_a_supplied_map(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"control_depth needs a folder of backgrounds with a depth map"):
        synthesizer("control_depth")
    Image.new("RGB", (300, 200), (10, 120, 30)).save(tmp_path / "wood.jpg")
    depth = np.linspace(0, 65535, 300 * 200).astype(np.uint16).reshape(200, 300)
    Image.fromarray(depth).save(tmp_path / "wood.depth.png")
    (tmp_path / "wood.txt").write_text("A dark forest.")
    made = synthesizer("control_depth", backgrounds_folder=str(tmp_path))
    sample = made.sample(0)
    assert sample.plan.instruction == "A dark forest."
    rows = sample.references[0][..., 0].astype(int)
    assert rows[-1].mean() - rows[0].mean() > 100

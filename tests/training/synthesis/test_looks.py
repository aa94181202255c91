"""What drawn shapes look like, and which settings can be."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from drawn_samples import synthesizer
from pack.training.synthesis.config import SynthesisConfig
from pack.training.synthesis.render import Renderer
from pack.training.synthesis.scene import Scene, SceneObject, Sprite
from pack.training.synthesis.shapes import SHAPES


def test_edges_are_antialiased_and_patterns_visible_in_a_few_pixels() -> None:
    made = synthesizer("text_to_image", 32, 32)

    def drawn(shape: str, texture: str) -> np.ndarray:
        item = SceneObject(
            key=1, sprite=Sprite(shape=shape, colour="red", texture=texture), x=0.5, y=0.5, scale=0.4
        )
        return made.renderer.draw(Scene(objects=(item,), style=made.plan(0).target.style)).astype(int)

    circle = drawn("circle", "plain")
    assert len({tuple(colour) for colour in circle.reshape(-1, 3)}) > 8
    pictures = [drawn("square", texture) for texture in made.config.textures]
    for one, two in itertools.combinations(pictures, 2):
        assert np.abs(one - two)[10:22, 10:22].mean() > 10


def test_all_shapes_lie_in_the_unit_circle() -> None:
    for name, shape in SHAPES.items():
        solid = [point for part in shape.parts if part.tone != "hole" for point in part.outline]
        assert max(math.hypot(*point) for point in solid) == pytest.approx(1.0), name


def test_shadow_rim_and_light_change_pixels_and_stay_in_the_mask() -> None:
    made = synthesizer(
        "remove", 128, 128, shadow=0.4, shadow_share=1.0, rim=0.1, rim_share=1.0, light_jitter=0.1
    )
    for index in range(4):
        sample = made.sample(index)
        assert sample.source is not None and sample.mask is not None
        assert sample.plan.target.style.light != (1.0, 1.0, 1.0)
        changed = (sample.source != sample.target).any(axis=2)
        assert not (changed & ~sample.mask).any()
        body = Renderer((128, 128), made.library)
        gone = {item.key for item in sample.plan.source.objects} - {i.key for i in sample.plan.target.objects}
        item = sample.plan.source.find(gone.pop())
        without_shadow = body.footprint(item, sample.plan.source.style, with_shadow=False)
        assert changed[~without_shadow].sum() > 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 8}, r"width must lie in 16..2048 px, got 8"),
        ({"objects": (3, 2)}, r"objects must be two numbers in 1..6, fewest first, got \(3, 2\)"),
        ({"references": (2, 6)}, r"references must be two numbers in 1..5, fewest first, got \(2, 6\)"),
        ({"tasks": (("fly", 1.0),)}, r"there is no task 'fly'; allowed are text_to_image, add"),
        ({"tasks": (("add", 0.0),)}, r"the weight of add must be above 0, got 0.0"),
        ({"shapes": ("blob",)}, r"shapes: blob given; allowed are circle"),
        ({"colours": ()}, r"colours: nothing given; allowed are red"),
        ({"backgrounds": ("movie",)}, r"backgrounds: 'movie' given; allowed are plain, gradient, photo"),
        ({"max_overlap": 1.0}, r"max_overlap must lie in 0..1, got 1.0"),
    ],
)
def test_settings_that_cannot_be(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SynthesisConfig(), **changes)


def test_a_recipe_without_room_says_what_to_change() -> None:
    with pytest.raises(ValueError, match=r"no recolour could be made in 400 tries .* allow more shapes"):
        synthesizer("recolour", colours=("red",)).sample(0)

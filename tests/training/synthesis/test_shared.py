"""Two threads draw with one renderer, as the one that trains and the one that reads ahead do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pack.training.synthesis.library import KEPT, Library
from pack.training.synthesis.render import KEPT_CUTOUTS, Renderer
from pack.training.synthesis.scene import Background, Scene, SceneObject, Sprite, Style
from PIL import Image


def meanwhile(work: Callable[[], None]) -> None:
    """Another thread works now, unless it has to wait for this one."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(0.5)


def star(key: int) -> SceneObject:
    sprite = Sprite(shape="star", colour="red", texture="plain")
    return SceneObject(key=key, sprite=sprite, x=0.5, y=0.5, scale=0.5)


STYLE = Style()


def test_an_object_that_other_threads_crowd_out_is_drawn_all_the_same() -> None:
    renderer = Renderer((16, 16), Library())

    def others() -> None:
        for key in range(1, KEPT_CUTOUTS + 2):
            renderer.cut_out(star(key), STYLE)

    class Crowded(SceneObject):
        """Others are drawn whenever it is looked up."""

        def __hash__(self) -> int:
            meanwhile(others)
            return 0

    plain = star(0)
    crowded = Crowded(key=0, sprite=plain.sprite, x=plain.x, y=plain.y, scale=plain.scale)
    expected = Renderer((16, 16), Library()).cut_out(plain, STYLE)
    assert np.array_equal(renderer.cut_out(crowded, STYLE).colour, expected.colour)


def test_a_sticker_that_other_threads_crowd_out_is_there_all_the_same(tmp_path: Path) -> None:
    for number in range(KEPT + 2):
        image = Image.new("RGBA", (9, 9))
        image.paste("red", (2, 2, 7, 7))
        image.save(tmp_path / f"{number}.png")
    library = Library(tmp_path)
    expected = Library(tmp_path).sticker("0.png", 4.0)

    def others() -> None:
        for number in range(1, KEPT + 2):
            library.sticker(f"{number}.png", 4.0)

    class Crowded(str):
        """Others are read whenever it is looked up."""

        def __hash__(self) -> int:
            meanwhile(others)
            return super().__hash__()

    image, extent = library.sticker(Crowded("0.png"), 4.0)
    assert extent == expected[1]
    assert np.array_equal(np.asarray(image), np.asarray(expected[0]))


def test_a_scene_keeps_its_background_while_another_is_drawn() -> None:
    renderer = Renderer((16, 16), Library())
    other = Scene(background=Background(colours=("navy blue",)), objects=(), style=STYLE)

    class Watched(Background):
        """Another scene is drawn whenever it is found to be the one that is wanted."""

        def __eq__(self, wanted: object) -> bool:
            if wanted is self:
                meanwhile(lambda: renderer.draw(other))
            return wanted is self

        __hash__ = Background.__hash__

    scene = Scene(background=Watched(colours=("white",)), objects=(), style=STYLE)
    expected = renderer.draw(scene)
    assert np.array_equal(renderer.draw(scene), expected)

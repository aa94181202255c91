"""What a picture and its instruction leave open is not asked for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from pack.training.synthesis.config import recipe_for
from pack.training.synthesis.operations import Turn
from pack.training.synthesis.samples import FAINTEST, Synthesizer, frames_show
from pack.training.synthesis.scene import Sprite
from pack.training.synthesis.workshop import is_symmetric_under


def synthesizer(task: str, side: int = 32, **changes: object) -> Synthesizer:
    config = dataclasses.replace(recipe_for(side, side, seed=7), tasks=((task, 1.0),), **changes)
    return Synthesizer(config)


def sides_of(maker: Synthesizer, index: int) -> list[np.ndarray]:
    """How much each outermost row and column of the framed object differs from the background."""
    plan, draw = maker.plan(index), maker.renderer.draw
    (mark,) = plan.target.marks
    item = plan.source.find(mark.key)
    others = tuple(other for other in plan.source.objects if other.key != item.key)
    gap = draw(plan.source).astype(int) - draw(dataclasses.replace(plan.source, objects=others))
    left, top, right, bottom = maker.renderer.box(item, plan.source.style)
    body = np.abs(gap).max(axis=2)[top:bottom, left:right]
    return [body[0], body[-1], body[:, 0], body[:, -1]]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_frame_goes_by_edges_that_are_seen(split: str) -> None:
    maker = synthesizer("detect", split=split, backgrounds=("plain",))
    for index in range(60):
        assert min(side.max() for side in sides_of(maker, index)) >= FAINTEST


def test_faint_edges_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = synthesizer("detect", backgrounds=("plain",))
    monkeypatch.setattr("pack.training.synthesis.samples.frames_show", lambda plan, renderer: True)
    plans = [maker.plan(index) for index in range(60)]
    faint = [min(side.max() for side in sides_of(maker, index)) < FAINTEST for index in range(60)]
    assert [not frames_show(plan, maker.renderer) for plan in plans] == faint
    assert 5 <= sum(faint) <= 55


def test_a_turn_is_at_least_twenty_degrees_of_the_silhouette() -> None:
    star, triangle, square = (Sprite(shape=name, colour="red") for name in ("star", "triangle", "square"))
    assert is_symmetric_under(star, 90) and not is_symmetric_under(star, 45)
    assert is_symmetric_under(triangle, 135) and not is_symmetric_under(triangle, 90)
    assert is_symmetric_under(square, 180) and not is_symmetric_under(square, 60)
    maker = synthesizer("rotate")
    for index in range(60):
        plan = maker.plan(index)
        (operation,) = plan.operations
        assert isinstance(operation, Turn)
        assert not is_symmetric_under(plan.source.find(operation.key).sprite, operation.degrees)

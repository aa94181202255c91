"""Two answers that must fail: the source as it is, and the right edit of a random object."""

from __future__ import annotations

import dataclasses

from ..synthesis.dice import Dice
from ..synthesis.operations import Add, Operation, Paint, SetBackground, Uncover, apply_all
from ..synthesis.render import Canvas
from ..synthesis.scene import Scene, SceneObject
from ..synthesis.workshop import PLACES
from .cases import Case


def copy_source(case: Case) -> Canvas:
    """The source unchanged; without one, the first reference or a grey canvas."""
    sample = case.sample
    if sample.source is not None:
        return sample.source
    for picture in sample.references:
        if picture.shape == sample.target.shape:
            return picture
    grey = sample.target.copy()
    grey[:] = 128
    return grey


def random_object(case: Case) -> Canvas:
    """The stated operation on an object drawn by lot; new pictures get their objects in wrong places."""
    plan, dice = case.sample.plan, Dice("random object", case.id)
    renderer = case.synthesizer.renderer
    if plan.source is None:
        return renderer.draw(shuffled(plan.target, dice))
    source, free = plan.source, dice.shuffled([item.key for item in plan.source.objects])
    operations: list[Operation] = []
    for operation in plan.operations:
        if isinstance(operation, Uncover):
            # Nothing is named here: the black area is filled as if the objects stood elsewhere.
            return renderer.draw(dataclasses.replace(shuffled(source, dice), marks=()))
        if isinstance(operation, SetBackground):
            operations.append(operation)
        elif isinstance(operation, Add):
            x, y = dice.choice(PLACES)
            operations.append(Add(item=dataclasses.replace(operation.item, x=x, y=y)))
        else:
            operations.append(retargeted(operation, free.pop() if free else operation_key(operation)))
    return renderer.draw(apply_all(tuple(operations), source))


def operation_key(operation: Operation) -> int:
    """The object an operation names."""
    key = operation.mark.key if isinstance(operation, Paint) else getattr(operation, "key", None)
    assert key is not None
    return key


def retargeted(operation: Operation, key: int) -> Operation:
    """The operation on another object."""
    if isinstance(operation, Paint):
        return Paint(mark=dataclasses.replace(operation.mark, key=key))
    return dataclasses.replace(operation, key=key)


def shuffled(scene: Scene, dice: Dice) -> Scene:
    """The scene with its objects in random places of the canvas or in each other's."""
    places = [(item.x, item.y) for item in scene.objects]
    places = dice.shuffled(places) if len(places) > 1 else [dice.choice(PLACES)]
    objects: list[SceneObject] = [
        dataclasses.replace(item, x=x, y=y) for item, (x, y) in zip(scene.objects, places, strict=True)
    ]
    return dataclasses.replace(scene, objects=tuple(objects))

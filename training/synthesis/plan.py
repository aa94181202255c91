"""A sample before it is drawn: scenes, words and the operations between source and target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .operations import Operation, apply_all, operation_to_json
from .scene import Scene, to_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A reference picture: a scene, or a map made from it."""

    scene: Scene
    view: str = "picture"
    """`picture`, `canny`, `segmentation` or `depth`."""
    is_canvas: bool = False
    """As large as the target instead of square."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything about a sample except its pixels."""

    task: str
    instruction: str
    source: Scene | None
    references: tuple[Reference, ...]
    target: Scene
    operations: tuple[Operation, ...]

    def to_json(self, size: tuple[int, int]) -> dict[str, Any]:
        """The scene description that is written beside the pictures; `size` is (width, height)."""
        return {
            "size": list(size),
            "source": to_json(self.source) if self.source else None,
            "target": to_json(self.target),
            "references": [to_json(reference) for reference in self.references],
            "operations": [operation_to_json(operation) for operation in self.operations],
        }


def edit_plan(
    task: str,
    instruction: str,
    source: Scene,
    operations: tuple[Operation, ...],
    references: tuple[Scene, ...] = (),
) -> Plan:
    """A plan whose target is the source after the operations."""
    return Plan(
        task=task,
        instruction=instruction,
        source=source,
        references=tuple(Reference(scene=scene) for scene in references),
        target=apply_all(operations, source),
        operations=operations,
    )


def generate_plan(task: str, instruction: str, target: Scene, references: tuple[Reference, ...] = ()) -> Plan:
    """A plan that starts from nothing but words and references."""
    return Plan(
        task=task, instruction=instruction, source=None, references=references, target=target, operations=()
    )

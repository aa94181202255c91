"""Drag prompts taken apart, and the motion that their points state: the way back from `drag_prompt`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pack.dit.dreamomni.drag import TOLERANCE, VERBS, DragOperation, DragPoint

NUMBER = r"[-+]?\d*\.?\d+"
TUPLE = re.compile(rf"\(\s*({NUMBER})\s*,\s*({NUMBER})\s*,\s*({NUMBER})\s*,\s*({NUMBER})\s*\)")
PROMPT = re.compile(rf"^\s*((?:{TUPLE.pattern}\s*)+)\.\s*(\w+)\s+(.+?)\.?\s*$", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class DragPrompt:
    """A drag prompt taken apart: `points` as shares of the picture's size."""

    points: tuple[DragPoint, ...]
    operation: DragOperation
    verb: str
    subject: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DragMotion:
    """The similarity that fits drag points best: degrees clockwise on screen, scale, pixels."""

    angle: float
    scale: float
    centre_shift: tuple[float, float]
    error: float
    """Largest distance in pixels between a stated and a fitted end point."""


def parse_drag_prompt(prompt: str) -> DragPrompt:
    """Take a drag prompt apart; raises ValueError if it is none."""
    match = PROMPT.match(prompt)
    if match is None:
        raise ValueError(
            f"not a drag prompt: {prompt[:80]!r}; expected '(x, y, dx, dy) ... (x, y, dx, dy). Verb object.'"
        )
    verb, subject = match.group(match.re.groups - 1), match.group(match.re.groups)
    operation = next((kind for kind, verbs in VERBS.items() if verb.capitalize() in verbs), None)
    if operation is None:
        known = ", ".join(name for verbs in VERBS.values() for name in verbs)
        raise ValueError(f"unknown drag verb {verb!r}; use one of {known}")
    points = tuple(DragPoint(*map(float, values)) for values in TUPLE.findall(match.group(1)))
    return DragPrompt(points=points, operation=operation, verb=verb, subject=" ".join(subject.split()))


def fit_motion(points: Sequence[DragPoint], size: tuple[int, int]) -> DragMotion:
    """The least-squares similarity of normalised drag points in a picture of `size`, about their first point.

    One point, or points in one place, fix only the shift: the angle is then 0 and the scale 1.
    """
    if not points:
        raise ValueError("no drag points to fit a motion to")
    width, height = size
    first = complex(points[0].x * width, points[0].y * height)
    starts = [complex(p.x * width, p.y * height) - first for p in points]
    ends = [start + complex(p.dx * width, p.dy * height) for start, p in zip(starts, points, strict=True)]
    start_mean, end_mean = sum(starts) / len(starts), sum(ends) / len(ends)
    spread = sum(abs(start - start_mean) ** 2 for start in starts)
    turn = complex(1.0)
    if spread > TOLERANCE:
        pairs = zip(starts, ends, strict=True)
        turn = sum((end - end_mean) * (start - start_mean).conjugate() for start, end in pairs) / spread
    shift = end_mean - turn * start_mean
    error = max(abs(turn * start + shift - end) for start, end in zip(starts, ends, strict=True))
    return DragMotion(
        angle=math.degrees(math.atan2(turn.imag, turn.real)),
        scale=abs(turn),
        centre_shift=(shift.real, shift.imag),
        error=error,
    )

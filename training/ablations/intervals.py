"""Means over seeds with Student's t intervals, and how many steps a level of the loss takes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Mean:
    """A mean over seeds with the half width of its two-sided 95 % interval (Student's t)."""

    value: float
    half: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return abs(self.value) > self.half

    def text(self, digits: int = 0, factor: float = 1.0) -> str:
        """`12 ± 3`; without the interval when one seed alone says nothing of it."""
        mean = f"{factor * self.value:.{digits}f}"
        return f"{mean} ± {factor * self.half:.{digits}f}" if math.isfinite(self.half) else mean


def mean_of(values: Sequence[float]) -> Mean:
    """The mean with its interval; an infinite one for a single value. ValueError without any."""
    from scipy.stats import t

    if not values:
        raise ValueError("there is no value to take the mean of")
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Mean(value=mean, half=math.inf)
    return Mean(value=mean, half=float(t.ppf(0.975, count - 1)) * statistics.stdev(values) / math.sqrt(count))


def steps_to(curve: Sequence[tuple[int, float]], level: float) -> float | None:
    """Steps at which a falling curve first reaches a level, in a straight line between points; None: never.

    The curve is made monotone first: its lowest value so far counts.
    """
    before: tuple[int, float] | None = None
    for step, loss in curve:
        if before is not None:
            loss = min(loss, before[1])
        if loss <= level:
            if before is None or before[1] == loss:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - level) / (before[1] - loss)
        before = step, loss
    return None


def speed(curve: Sequence[tuple[int, float]], other: Sequence[tuple[int, float]]) -> float:
    """How many times fewer steps `curve` takes than `other` to the lowest loss that both reach.

    ValueError for an empty curve.
    """
    if not curve or not other:
        raise ValueError("a curve without points has no speed; measure it at least once")
    level = max(min(loss for _, loss in curve), min(loss for _, loss in other))
    mine, theirs = steps_to(curve, level), steps_to(other, level)
    assert mine is not None and theirs is not None
    return theirs / mine

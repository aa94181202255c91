"""Watches the loss: when to skip a step, when to give up, when nothing gets better any more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

SMOOTHING = 0.98
GRACE_STEPS = 50
DIVERGED_FACTOR = 4.0
SUSPECT_FACTOR = 2.0
NON_FINITE_LIMIT = 3
FLOOR = 0.02
"""The least that `lowest` counts as.

Where a loss is as good as zero, multiples of it tell nothing: one batch may be fifty of them. Above twice the
floor the smoothed loss comes only by a batch with a cross entropy over 2, or by many in a row. A network that
went wrong is far above four times the floor: a velocity guessed as zero has a loss of about 1 or more.
"""


@dataclass(slots=True)
class LossMonitor:
    """Smoothed loss with bias correction; all limits are chosen, not published."""

    smoothed: float = 0.0
    weight: float = 0.0
    lowest: float = math.inf
    seen: int = 0
    non_finite_in_a_row: int = 0

    def add(self, loss: float, gradient_norm: float) -> bool:
        """Take one step's numbers; False when they are not finite and the step must be skipped."""
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            self.non_finite_in_a_row += 1
            return False
        self.non_finite_in_a_row = 0
        self.seen += 1
        self.smoothed = SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)
        if self.seen >= GRACE_STEPS:
            self.lowest = min(self.lowest, self.value)
        return True

    def begun_anew(self) -> LossMonitor:
        """One for losses of another scale; steps that failed in a row are counted on."""
        return LossMonitor(non_finite_in_a_row=self.non_finite_in_a_row)

    @property
    def value(self) -> float:
        """The smoothed loss."""
        return self.smoothed / self.weight if self.weight else math.nan

    def diverged(self) -> str | None:
        """Why the run cannot go on, or None."""
        if self.non_finite_in_a_row >= NON_FINITE_LIMIT:
            return f"the loss or its gradient was not finite {self.non_finite_in_a_row} steps in a row"
        if self.seen > GRACE_STEPS and self.exceeds(DIVERGED_FACTOR):
            return f"the smoothed loss {self.value:.4g} is {DIVERGED_FACTOR:g} x its lowest {self.lowest:.4g}"
        return None

    @property
    def is_suspect(self) -> bool:
        """Whether the weights may be going wrong, so that no checkpoint should replace a good one."""
        return self.non_finite_in_a_row > 0 or self.exceeds(SUSPECT_FACTOR)

    def exceeds(self, factor: float) -> bool:
        """Whether the smoothed loss is more than `factor` times its lowest, or the floor if that is more."""
        return self.value > factor * max(self.lowest, FLOOR)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "smoothed": self.smoothed,
            "weight": self.weight,
            "lowest": self.lowest if math.isfinite(self.lowest) else None,
            "seen": self.seen,
            "non_finite_in_a_row": self.non_finite_in_a_row,
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> LossMonitor:
        """The monitor as a checkpoint kept it."""
        monitor = cls(**{name: value for name, value in state.items() if value is not None})
        return monitor


@dataclass(slots=True)
class BestValue:
    """The lowest validation loss so far and how long ago it was."""

    value: float | None = None
    step: int | None = None
    worse_in_a_row: int = 0

    def add(self, value: float, step: int) -> bool:
        """Take a validation loss; True when it is the best so far. NaN and infinity never count as best."""
        if math.isfinite(value) and (self.value is None or value < self.value):
            self.value, self.step, self.worse_in_a_row = value, step, 0
            return True
        self.worse_in_a_row += 1
        return False

    def exhausted(self, patience: int) -> bool:
        """Whether `patience` validations brought nothing better (0 waits for ever)."""
        return 0 < patience <= self.worse_in_a_row

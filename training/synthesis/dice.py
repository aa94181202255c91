"""Random choices that are the same on every machine, in every process and Python version."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """Draws built on `random.Random.random` alone, the only stream Python promises to keep."""

    def __init__(self, *key: int | str) -> None:
        self._random = random.Random(":".join(str(part) for part in key))

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self._random.random()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random.random() < probability

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def choice(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[int(self._random.random() * len(items))]

    def weighted(self, weights: Mapping[T, float]) -> T:
        """One of the keys, with a probability in proportion to its weight."""
        mark = self._random.random() * sum(weights.values())
        for item, weight in weights.items():
            mark -= weight
            if mark < 0:
                return item
        return next(item for item, weight in reversed(list(weights.items())) if weight > 0)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order."""
        pool = list(items)
        for place in range(len(pool) - 1, 0, -1):
            other = self.integer(0, place)
            pool[place], pool[other] = pool[other], pool[place]
        return pool

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items."""
        return self.shuffled(items)[:count]

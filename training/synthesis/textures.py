"""Patterns and materials in an object's own coordinates, so that they turn and grow with it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]

PERIOD = 0.56
"""Width of one repeat of a pattern, in radii of the object."""


def soft_step(distance: Field, pixel: float) -> Field:
    """0 below, 1 above a border, over the width of a pixel."""
    return np.clip(distance / max(pixel, 1e-6) + 0.5, 0.0, 1.0).astype(np.float32)


def wave(position: Field) -> Field:
    """A triangle wave of the pattern's period, 0..PERIOD/2."""
    return np.abs(np.mod(position + PERIOD / 4, PERIOD) - PERIOD / 2)


def noise(u: Field, v: Field, cells: float, seed: int) -> Field:
    """Smooth value noise 0..1 with `cells` cells per radius."""
    x, y = u * cells + 64, v * cells + 64
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = x - left, y - top
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)

    def corner(column: NDArray[np.int64], row: NDArray[np.int64]) -> Field:
        mixed = (column * 374761393 + row * 668265263 + seed * 144665) & 0x7FFFFFFF
        mixed = ((mixed ^ (mixed >> 13)) * 1274126177) & 0x7FFFFFFF
        return ((mixed ^ (mixed >> 16)) & 0xFFFF).astype(np.float32) / 65535.0

    above = corner(left, top) * (1 - fx) + corner(left + 1, top) * fx
    below = corner(left, top + 1) * (1 - fx) + corner(left + 1, top + 1) * fx
    return (above * (1 - fy) + below * fy).astype(np.float32)


def plain(u: Field, v: Field, pixel: float) -> Field:
    """One colour."""
    return np.zeros_like(u)


def striped(u: Field, v: Field, pixel: float) -> Field:
    """Slanted stripes, as wide as the gaps."""
    return soft_step(wave((u + v) * 0.70710678) - PERIOD / 4, pixel)


def dotted(u: Field, v: Field, pixel: float) -> Field:
    """Round dots on a square grid."""
    du = np.mod(u + PERIOD / 2, PERIOD) - PERIOD / 2
    dv = np.mod(v + PERIOD / 2, PERIOD) - PERIOD / 2
    return soft_step(0.185 - np.hypot(du, dv), pixel)


def checkered(u: Field, v: Field, pixel: float) -> Field:
    """A chessboard."""
    across = soft_step(wave(u) - PERIOD / 4, pixel)
    down = soft_step(wave(v) - PERIOD / 4, pixel)
    return across + down - 2 * across * down


def rippled(u: Field, v: Field, pixel: float) -> Field:
    """Level waves."""
    return soft_step(wave(v + 0.11 * np.sin(u * (2 * np.pi / 0.8))) - PERIOD / 4, pixel)


def wooden(u: Field, v: Field, pixel: float) -> Field:
    """Year rings of a board."""
    bend = noise(u * 0.6, v, 2.0, 3)
    rings = 0.5 + 0.5 * np.sin((v * 2.2 + bend * 1.6) * 11.0)
    return (0.12 + 0.5 * rings * rings + 0.15 * noise(u * 0.4, v * 6, 5.0, 5)).astype(np.float32)


def marble(u: Field, v: Field, pixel: float) -> Field:
    """Thin veins."""
    turbulence = noise(u, v, 2.0, 11) + 0.5 * noise(u, v, 4.5, 13) + 0.25 * noise(u, v, 9.0, 17)
    veins = 1 - np.abs(np.sin((u * 0.8 + v * 0.5 + 1.7 * turbulence) * 3.1))
    return (0.1 + 0.9 * veins**5).astype(np.float32)


def metallic(u: Field, v: Field, pixel: float) -> Field:
    """Bands of reflected light."""
    band = 0.5 + 0.5 * np.sin((u * 0.35 + v) * 4.2 + 0.7)
    return (0.85 * band**3 + 0.1 * noise(u * 0.3, v * 14, 3.0, 23)).astype(np.float32)


TEXTURES: dict[str, Callable[[Field, Field, float], Field]] = {
    "plain": plain,
    "striped": striped,
    "dotted": dotted,
    "checkered": checkered,
    "rippled": rippled,
    "wooden": wooden,
    "marble": marble,
    "metallic": metallic,
}
"""Name -> share of the second colour (0..1) at (u, v), with the size of a pixel in the same units."""

MAIN_TEXTURES = ("plain", "striped", "dotted", "checkered")
"""Patterns that are told apart in a picture of a few pixels."""

MATERIALS = frozenset({"wooden", "marble", "metallic"})
"""Textures that are a material; the others are patterns."""

"""Draws scenes: numpy and Pillow, antialiased, the same bytes for the same description.

`B` box height and width in pixels, canvases are (height, width, 3) uint8.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from .library import Library
from .palette import BACKGROUNDS, COLOURS, MARK_COLOURS, Colour, mix, second_colour
from .scene import Background, Mark, Scene, SceneObject, Style
from .shapes import SHAPES, Outline
from .textures import TEXTURES

Canvas = NDArray[np.uint8]
Coverage = NDArray[np.float32]

GRADIENT_STEPS = 1024
KEPT_CUTOUTS = 10
"""Drawn objects that are kept: those of one sample."""

TONES: dict[str, tuple[Colour, float]] = {"dark": ((18, 18, 22), 0.6), "light": ((255, 255, 255), 0.82)}
"""Shades of an object's details: what its colour is mixed with, and how much of it."""

SHADOW_BLUR = 0.14
SHADOW_SHIFT = (0.08, 0.13)
"""Shadow softness and place, in radii of the object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cutout:
    """A drawn object: the box it covers on the canvas, its colours and how much it covers."""

    left: int
    top: int
    colour: NDArray[np.float32]
    """(B, B, 3), 0..255."""
    coverage: Coverage
    """(B, B), 0..1."""
    shadow: Coverage | None
    """(B, B), 0..1."""

    def window(self, canvas: Canvas) -> tuple[slice, slice, slice, slice]:
        """Rows and columns of the canvas, then rows and columns of the box, that overlap."""
        height, width = self.coverage.shape
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + height, canvas.shape[0]), min(self.left + width, canvas.shape[1])
        bottom, right = max(bottom, top), max(right, left)
        rows, columns = slice(top, bottom), slice(left, right)
        inner_rows = slice(top - self.top, bottom - self.top)
        inner_columns = slice(left - self.left, right - self.left)
        return rows, columns, inner_rows, inner_columns


def as_share(values: NDArray[Any]) -> Coverage:
    """0..255 as 0..1."""
    return (values / 255).astype(np.float32)


def quantised(coverage: Coverage) -> Coverage:
    """Coverage in steps of 1/255, so that what is below one step paints nothing."""
    return (np.round(coverage * 255) / 255).astype(np.float32)


def radius_in_pixels(item: SceneObject, size: tuple[int, int]) -> float:
    """Radius of the circle around an object on a (width, height) canvas."""
    return item.scale * min(size) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """Four lines around an object, pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int
    thick: int

    def lines(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """(height, width) mask of the lines in a picture of (width, height)."""
        area = np.zeros((size[1], size[0]), bool)
        area[self.top : self.bottom, self.left : self.right] = True
        thick = self.thick
        area[self.top + thick : self.bottom - thick, self.left + thick : self.right - thick] = False
        return area


class Renderer:
    """Draws scenes of one canvas size; `library` provides stickers and photos from files.

    Threads may share it, as those that train and that read ahead do.
    """

    def __init__(self, size: tuple[int, int], library: Library) -> None:
        self.size = size
        self.library = library
        self._cutouts: OrderedDict[tuple[SceneObject, Style], Cutout] = OrderedDict()
        self._background: tuple[Background, Canvas] | None = None
        self._lock = threading.Lock()

    def draw(self, scene: Scene) -> Canvas:
        """The picture of a scene, (height, width, 3)."""
        kept = self._background  # looked at once: another thread may put its own there meanwhile
        if kept is None or kept[0] != scene.background:
            self._background = kept = (scene.background, self.background(scene.background))
        canvas = kept[1].copy()
        for item in scene.objects:
            self._compose(canvas, self.cut_out(item, scene.style), scene.style)
        for mark in scene.marks:
            self._paint(canvas, mark, scene)
        if scene.style.light != (1.0, 1.0, 1.0):
            gains = np.asarray(scene.style.light, np.float32)
            table = np.clip(np.round(np.arange(256, dtype=np.float32)[:, None] * gains), 0, 255)
            channels = [table[:, channel].astype(np.uint8)[canvas[..., channel]] for channel in range(3)]
            canvas = np.stack(channels, axis=-1)
        return canvas

    def background(self, background: Background) -> Canvas:
        """The canvas before any object."""
        width, height = self.size
        if background.kind == "photo":
            assert background.photo is not None
            return self.library.photo(background.photo, self.size, background.crop)
        first = np.asarray(BACKGROUNDS[background.colours[0]], np.float32)
        if background.kind == "plain":
            return np.broadcast_to(first.astype(np.uint8), (height, width, 3)).copy()
        last = np.asarray(BACKGROUNDS[background.colours[1]], np.float32)
        cos, sin = math.cos(math.radians(background.angle)), math.sin(math.radians(background.angle))
        x = (np.arange(width, dtype=np.float32) + 0.5) / width - 0.5
        y = (np.arange(height, dtype=np.float32) + 0.5) / height - 0.5
        along = (x[None, :] * cos + y[:, None] * sin) / (abs(cos) + abs(sin)) + 0.5
        steps = np.linspace(0, 1, GRADIENT_STEPS, dtype=np.float32)[:, None]
        table = np.round(first + (last - first) * steps).astype(np.uint8)
        return table[np.clip(along * (GRADIENT_STEPS - 1) + 0.5, 0, GRADIENT_STEPS - 1).astype(np.int16)]

    def cut_out(self, item: SceneObject, style: Style) -> Cutout:
        """An object drawn alone on its box; source, target and mask of a sample share it."""
        key = (item, style)
        with self._lock:
            kept = self._cutouts.get(key)
        if kept is not None:
            return kept
        drawn = self._draw_object(item, style)
        with self._lock:
            self._cutouts[key] = drawn
            if len(self._cutouts) > KEPT_CUTOUTS:
                self._cutouts.popitem(last=False)
        return drawn

    def _draw_object(self, item: SceneObject, style: Style) -> Cutout:
        width, height = self.size
        radius = radius_in_pixels(item, self.size)
        reach = math.ceil(radius) + 1
        left, top = math.floor(item.x * width) - reach, math.floor(item.y * height) - reach
        centre = (item.x * width - left, item.y * height - top)
        box = 2 * reach + 1
        if item.sprite.sticker is not None:
            colour, coverage = self._sticker(item, style, centre, box, radius)
        else:
            colour, coverage = self._procedural(item, style, centre, box, radius)
        coverage = quantised(coverage)
        if not style.shadow:
            return Cutout(left=left, top=top, colour=colour, coverage=coverage, shadow=None)
        margin = math.ceil(radius * (3 * SHADOW_BLUR + max(SHADOW_SHIFT)))
        coverage = np.pad(coverage, margin)
        colour = np.pad(colour, ((margin, margin), (margin, margin), (0, 0)))
        shadow = cast_shadow(coverage, radius)
        return Cutout(left=left - margin, top=top - margin, colour=colour, coverage=coverage, shadow=shadow)

    def footprint(self, item: SceneObject, style: Style, with_shadow: bool = True) -> NDArray[np.bool_]:
        """(height, width) mask of the pixels an object can change."""
        mask = np.zeros((self.size[1], self.size[0]), bool)
        cutout = self.cut_out(item, style)
        touched = cutout.coverage > 0
        if with_shadow and cutout.shadow is not None:
            touched |= cutout.shadow > 0
        rows, columns, inner_rows, inner_columns = cutout.window(np.empty((*mask.shape, 3), np.uint8))
        mask[rows, columns] = touched[inner_rows, inner_columns]
        return mask

    def silhouette(self, key: int, scene: Scene) -> NDArray[np.bool_]:
        """(height, width) mask of the visible body of an object: no shadow, nothing hidden by others."""
        mask = np.zeros((self.size[1], self.size[0]), bool)
        canvas = np.empty((*mask.shape, 3), np.uint8)
        for item in scene.objects:
            cutout = self.cut_out(item, scene.style)
            rows, columns, inner_rows, inner_columns = cutout.window(canvas)
            solid = cutout.coverage[inner_rows, inner_columns] >= 0.5
            mask[rows, columns] = solid if item.key == key else mask[rows, columns] & ~solid
        return mask

    def box(self, item: SceneObject, style: Style) -> tuple[int, int, int, int]:
        """Left, top, right, bottom (exclusive) of the body of an object, pixels."""
        body = self.footprint(item, style, with_shadow=False)
        rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
        if not len(rows):
            return 0, 0, 0, 0
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    def mark_area(self, mark: Mark, scene: Scene) -> NDArray[np.bool_]:
        """(height, width) mask of the pixels a mark paints."""
        if mark.kind == "fill":
            assert mark.key is not None
            return self.silhouette(mark.key, scene)
        if mark.kind == "box":
            return self.frame(mark, scene).lines(self.size)
        assert mark.area is not None
        width, height = self.size
        area = np.zeros((height, width), bool)
        left, top, right, bottom = mark.area
        area[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
        return area

    def frame(self, mark: Mark, scene: Scene) -> Frame:
        """Where a `box` mark is drawn: around its object, no further than the picture."""
        assert mark.key is not None
        width, height = self.size
        left, top, right, bottom = self.box(scene.find(mark.key), scene.style)
        thick = max(1, round(min(self.size) / 110))
        return Frame(
            left=max(left - thick, 0),
            top=max(top - thick, 0),
            right=min(right + thick, width),
            bottom=min(bottom + thick, height),
            thick=thick,
        )

    def _compose(self, canvas: Canvas, cutout: Cutout, style: Style) -> None:
        rows, columns, inner_rows, inner_columns = cutout.window(canvas)
        under = canvas[rows, columns].astype(np.float32)
        if cutout.shadow is not None:
            under *= 1 - style.shadow * cutout.shadow[inner_rows, inner_columns, None]
        share = cutout.coverage[inner_rows, inner_columns, None]
        over = cutout.colour[inner_rows, inner_columns]
        canvas[rows, columns] = np.round(under + (over - under) * share).astype(np.uint8)

    def _paint(self, canvas: Canvas, mark: Mark, scene: Scene) -> None:
        colour = (0, 0, 0) if mark.kind == "black" else MARK_COLOURS[mark.colour]
        canvas[self.mark_area(mark, scene)] = colour

    def _procedural(
        self, item: SceneObject, style: Style, centre: tuple[float, float], box: int, radius: float
    ) -> tuple[NDArray[np.float32], Coverage]:
        sprite = item.sprite
        assert sprite.colour is not None and sprite.texture is not None
        base = COLOURS[sprite.colour]
        inner = radius * (1 - style.rim)
        shape = SHAPES[sprite.shape]
        textured = self._textured(item, base, style, centre, box, inner)
        colour = textured.copy()
        body, grown = np.zeros((box, box), np.float32), np.zeros((box, box), np.float32)
        rim = radius - inner if radius - inner >= 0.75 else 0.0
        for part in shape.parts:
            drawn = draw_outline(part.outline, item.rotation, centre, inner, box)
            if part.tone == "hole":
                body *= 1 - drawn
                if rim:
                    left_over = max(inner - 2 * rim, 1.0)
                    grown *= 1 - draw_outline(part.outline, item.rotation, centre, left_over, box)
                continue
            if part.tone != "base":
                tone = np.asarray(mix(base, *TONES[part.tone]), np.float32)
                colour += (tone - colour) * drawn[..., None]
            else:
                colour += (textured - colour) * drawn[..., None]
            body = np.maximum(body, drawn)
            if rim:
                grown = np.maximum(grown, draw_outline(part.outline, item.rotation, centre, inner, box, rim))
        if rim:
            return 255 + (colour - 255) * body[..., None], np.maximum(grown, body)
        return colour, body

    def _textured(
        self,
        item: SceneObject,
        base: Colour,
        style: Style,
        centre: tuple[float, float],
        box: int,
        inner: float,
    ) -> NDArray[np.float32]:
        axis = np.arange(box, dtype=np.float32) + 0.5
        x, y = (axis[None, :] - centre[0]) / inner, (axis[:, None] - centre[1]) / inner
        cos, sin = math.cos(math.radians(item.rotation)), math.sin(math.radians(item.rotation))
        u, v = (x * cos + y * sin).astype(np.float32), (y * cos - x * sin).astype(np.float32)
        assert item.sprite.texture is not None
        coarse = np.float32(style.pattern)
        share = TEXTURES[item.sprite.texture](u / coarse, v / coarse, 1 / (inner * style.pattern))[..., None]
        first, second = np.asarray(base, np.float32), np.asarray(second_colour(base), np.float32)
        colour = first + (second - first) * share
        if style.shading:
            colour = colour * (1 - style.shading * (0.5 + 0.5 * np.clip(y, -1, 1)))[..., None]
        return colour.astype(np.float32)

    def _sticker(
        self, item: SceneObject, style: Style, centre: tuple[float, float], box: int, radius: float
    ) -> tuple[NDArray[np.float32], Coverage]:
        assert item.sprite.sticker is not None
        image, extent = self.library.sticker(item.sprite.sticker, radius)
        # Output pixel -> sticker pixel; `extent` is the sticker's own circle radius in its pixels.
        step = extent / radius
        cos, sin = math.cos(math.radians(item.rotation)) * step, math.sin(math.radians(item.rotation)) * step
        middle_x, middle_y = image.width / 2, image.height / 2
        shift_x = middle_x - cos * centre[0] - sin * centre[1]
        shift_y = middle_y + sin * centre[0] - cos * centre[1]
        matrix = (cos, sin, shift_x, -sin, cos, shift_y)
        drawn = image.transform((box, box), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
        pixels = np.asarray(drawn, np.float32)
        return pixels[..., :3], as_share(pixels[..., 3])


def draw_outline(
    outline: Outline, rotation: float, centre: tuple[float, float], radius: float, box: int, rim: float = 0.0
) -> Coverage:
    """(B, B) coverage of a polygon grown by `rim` pixels, antialiased by drawing it several times larger."""
    factor = 8 if radius < 40 else 4
    cos, sin = math.cos(math.radians(rotation)) * radius, math.sin(math.radians(rotation)) * radius
    points = [
        ((centre[0] + x * cos - y * sin) * factor - 0.5, (centre[1] + x * sin + y * cos) * factor - 0.5)
        for x, y in outline
    ]
    large = Image.new("L", (box * factor, box * factor))
    pen = ImageDraw.Draw(large)
    pen.polygon(points, fill=255)
    if rim:
        pen.line([*points, points[0], points[1]], fill=255, width=round(2 * rim * factor), joint="curve")
    return as_share(np.asarray(large.reduce(factor)))


def cast_shadow(coverage: Coverage, radius: float) -> Coverage:
    """(B, B) soft shadow to the lower right of a body."""
    shift_x, shift_y = (round(part * radius) for part in SHADOW_SHIFT)
    moved = np.zeros_like(coverage)
    height, width = coverage.shape
    moved[shift_y:, shift_x:] = coverage[: height - shift_y, : width - shift_x]
    soft = Image.fromarray(np.round(moved * 255).astype(np.uint8))
    return as_share(np.asarray(soft.filter(ImageFilter.GaussianBlur(SHADOW_BLUR * radius))))

"""Contact sheets: one sample a row, its pictures side by side with names, its words below.

As a program: `python -P contact_sheet.py OUT SIDE ACROSS < ROWS` draws a `flowing_sheet`. ROWS is a JSON
list of objects with `heading`, `text` and `pictures`, a list of [name, file]. It needs Pillow alone.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

INK, PAPER, FRAME, FAINT = (28, 30, 34), (250, 250, 248), (208, 208, 204), (120, 122, 126)
GAP = 12
BETWEEN = 2 * GAP
SIDE = 192
"""Edge of a picture of a contact sheet, in pixels, unless another is asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SheetRow:
    """A row of a contact sheet."""

    pictures: tuple[tuple[str, Image.Image], ...]
    """Name and picture, from the left."""
    text: str
    heading: str = ""


def fitted(image: Image.Image, side: int) -> Image.Image:
    """The picture fitted into a square of `side` pixels; small ones are enlarged without blur."""
    factor = min(side / image.width, side / image.height)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    way = Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS
    return image.convert("RGB").resize(size, way)


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text broken into lines of at most about `width` pixels."""
    letter = max(font.getlength("the quick brown fox") / 19, 1)
    return textwrap.fill(text, max(20, int(width / letter)))


def draw_row(row: SheetRow, side: int, width: int) -> Image.Image:
    """One row as a strip of `width` pixels."""
    small, normal = ImageFont.load_default(max(12, side // 12)), ImageFont.load_default(max(14, side // 10))
    words = wrapped(row.text, normal, width - 2 * GAP)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    text_height = int(measure.multiline_textbbox((0, 0), words, font=normal)[3])
    line_height = int(measure.textbbox((0, 0), "Ag", font=small)[3]) + 4
    label_height = line_height * (2 if row.heading else 1)
    strip = Image.new("RGB", (width, side + label_height + text_height + 3 * GAP), PAPER)
    pen = ImageDraw.Draw(strip)
    for place, (name, image) in enumerate(row.pictures):
        left, top = GAP + place * (side + GAP), GAP // 2 + label_height
        shown = fitted(image, side)
        pen.text((left, top - line_height), name, fill=FAINT, font=small)
        strip.paste(shown, (left, top))
        pen.rectangle((left - 1, top - 1, left + shown.width, top + shown.height), outline=FRAME)
    pen.text((GAP, GAP // 2), row.heading, fill=INK, font=small)
    pen.multiline_text((GAP, side + label_height + GAP), words, fill=INK, font=normal)
    pen.line((0, strip.height - 1, width, strip.height - 1), fill=FRAME)
    return strip


def contact_sheet(rows: Sequence[SheetRow], side: int = SIDE) -> Image.Image:
    """All rows below each other; `side` is the edge of one picture in pixels."""
    most = max(len(row.pictures) for row in rows)
    width = max(most, 3) * (side + GAP) + GAP
    strips = [draw_row(row, side, width) for row in rows]
    sheet = Image.new("RGB", (width, sum(strip.height for strip in strips)), PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def flowing_sheet(rows: Sequence[SheetRow], side: int, across: int) -> Image.Image:
    """Short rows beside each other, where two of them need no more than the width of `across` pictures."""
    width = across * (side + GAP) + 2 * GAP + BETWEEN
    lines: list[list[tuple[int, Image.Image]]] = []
    left = width
    for row in rows:
        strip = draw_row(row, side, len(row.pictures) * (side + GAP) + GAP)
        if left + strip.width > width:
            lines.append([])
            left = 0
        lines[-1].append((left, strip))
        left += strip.width + BETWEEN
    heights = [max(strip.height for _, strip in line) for line in lines]
    sheet = Image.new("RGB", (width, sum(heights)), PAPER)
    for number, line in enumerate(lines):
        for place, strip in line:
            sheet.paste(strip, (place, sum(heights[:number])))
    return sheet


def rows_from(entries: Iterable[Mapping[str, Any]]) -> list[SheetRow]:
    """Rows from the program's JSON."""
    rows = []
    for entry in entries:
        pictures = tuple((name, Image.open(path)) for name, path in entry["pictures"])
        rows.append(SheetRow(pictures=pictures, text=entry["text"], heading=entry["heading"]))
    return rows


if __name__ == "__main__":
    drawn = flowing_sheet(rows_from(json.load(sys.stdin)), side=int(sys.argv[2]), across=int(sys.argv[3]))
    drawn.save(Path(sys.argv[1]), quality=85, optimize=True)

"""The contact sheet shows every picture and all words."""

from __future__ import annotations

import numpy as np
from pack.training.contact_sheet import SheetRow, contact_sheet
from PIL import Image


def test_pictures_lie_side_by_side_and_long_words_get_more_lines() -> None:
    red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (300, 150), "blue")
    row = SheetRow(pictures=(("source", red), ("target", blue)), text="short", heading="0 add")
    tall = SheetRow(pictures=row.pictures, text="many words " * 40)
    sheet, taller = contact_sheet([row], 96), contact_sheet([row, tall], 96)
    pixels = np.asarray(sheet)
    assert ((pixels == (255, 0, 0)).all(axis=2)).sum() >= 96 * 96 * 0.98
    assert ((pixels == (0, 0, 255)).all(axis=2)).sum() >= 96 * 48 * 0.95
    assert taller.height > 2 * sheet.height and taller.width == sheet.width

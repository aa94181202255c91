"""The contact sheet shows every picture and all words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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


def test_as_a_program_it_draws_files_from_json(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    row = {"heading": "demo-edit", "text": "Remove it.", "pictures": [["result", str(tmp_path / "red.png")]]}
    program = Path(sys.modules[SheetRow.__module__].__file__)
    command = [sys.executable, "-P", program, tmp_path / "sheet.png", "96", "2"]
    subprocess.run(command, input=json.dumps([row, row, row]), text=True, check=True)
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert ((pixels == (255, 0, 0)).all(axis=2)).sum() >= 3 * 96 * 96 * 0.98
    # Two beside each other, the third below.
    red = (pixels == (255, 0, 0)).all(axis=2)
    assert red[:, : pixels.shape[1] // 2].sum() > red[:, pixels.shape[1] // 2 :].sum() > 0

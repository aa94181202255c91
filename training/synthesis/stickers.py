"""Sticker sets on disk: a folder of cut-out pictures, an emoji package, tuxpaint stamps, iconify JSON."""

from __future__ import annotations

import functools
import importlib
import io
import json
import re
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..datasets.records import decode_picture
from .svg import MAX_SVG_LENGTH, checked_svg

SUFFIXES = frozenset({".png", ".webp", ".svg", ".gif"})
EMOJI_GROUPS = frozenset({0, 3, 4, 5, 6, 7})
"""Groups of emojibase that show one thing: faces, animals, food, travel, activities, objects."""

RASTER_SIZE = 256
"""Pixels a vector sticker is drawn at; larger ones are scaled up."""

TOO_PLAIN = re.compile(r"_mirror|mirror_|/symbols/")
"""Stamps that are another one mirrored, or single letters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StickerFile:
    """Where a sticker lies and what it shows."""

    key: str
    noun: str
    path: Path
    icon: str | None = None
    """Name inside an iconify file."""

    @property
    def is_vector(self) -> bool:
        """Whether it is drawn at any size."""
        return self.icon is not None or self.path.suffix.lower() == ".svg"

    @property
    def where(self) -> str:
        """How messages call it."""
        return str(self.path) if self.icon is None else f"{self.path} (icon {self.icon})"


HEAD_END = re.compile(r" (?:of|with|on|in|and|for|facing|without) ")
"""What follows the noun that decides between one and several."""

SKIN_TONE = re.compile(r"-(?:medium-)?(?:light|medium|dark)$")
"""Ends of iconify names of people in further skin tones."""


def clean_noun(caption: str) -> str:
    """A caption as a singular noun without article: `A frog.` -> `frog`, `grapes` -> `picture of grapes`."""
    words = re.split(r"[.;:(\n]", caption.replace("_", " ").strip(), maxsplit=1)[0].strip(" ,-")
    leading = re.match(r"(an?|the)\s+", words, re.IGNORECASE)
    words = words[leading.end() :] if leading else words
    if not words[1:2].isupper():
        words = words[:1].lower() + words[1:]
    words = " ".join(words.split())
    several = re.search(r"[^sui]s$", HEAD_END.split(words)[0])
    return f"picture of {words}" if several and not leading else words


def words_of_name(stem: str) -> str:
    """`red-apple_02` -> `red apple`."""
    return re.sub(r"\d+$", "", re.sub(r"[-_]+", " ", stem)).strip() or "sticker"


def is_picture(path: Path, suffixes: Container[str]) -> bool:
    """Whether this is a picture's file and not what macOS writes beside each (`._cat.png`)."""
    return path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()


def find_stickers(folder: Path) -> list[StickerFile]:
    """All stickers below a folder, by name; raises for a folder without any."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no sticker folder {folder}.")
    found: list[StickerFile] = []
    for path in sorted(folder.rglob("icons.json")):
        found += iconify_stickers(path, folder)
    names = emoji_names(folder)
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder).as_posix()
        if is_picture(path, SUFFIXES) and not TOO_PLAIN.search(f"/{place}"):
            caption = file_caption(path, names)
            if caption is not None:
                found.append(StickerFile(key=place, noun=clean_noun(caption), path=path))
    if not found:
        raise ValueError(
            f"{folder} holds no stickers. Put pictures with transparency into it (PNG, WebP, SVG), "
            "named after what they show or with a .txt beside them."
        )
    return found


def file_caption(path: Path, emoji: dict[str, str]) -> str | None:
    """What a file shows: its .txt, its emoji label or its name; None for an emoji that is left out."""
    note = path.with_suffix(".txt")
    if note.is_file():
        lines = note.read_text(encoding="utf-8-sig", errors="replace").strip().splitlines()
        if lines:
            return lines[0]
    if emoji and re.match(r"(?=\w*\d)[0-9a-fA-F]{2,6}(-|$)", path.stem):
        return emoji.get(emoji_code(path.stem))
    return words_of_name(path.stem)


def json_of(path: Path) -> Any:
    """What a JSON file holds; raises ValueError with its name."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error}). Replace or remove it.") from error


def emoji_code(code: str) -> str:
    """A code that is equal in all packages: lower case, without the variation selector."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def emoji_names(folder: Path) -> dict[str, str]:
    """Code -> label from an emojibase `data.json` below the folder, English first; empty if there is none."""
    # The whole package has a folder a language, and instructions are English sentences around these labels.
    for path in sorted(folder.rglob("data.json"), key=lambda path: (path.parent.name != "en", path)):
        entries = json_of(path)
        if isinstance(entries, list) and entries and isinstance(entries[0], dict) and "hexcode" in entries[0]:
            return {
                emoji_code(entry["hexcode"]): entry["label"]
                for entry in entries
                if entry.get("group") in EMOJI_GROUPS
            }
    return {}


def iconify_stickers(path: Path, folder: Path) -> list[StickerFile]:
    """The icons of an iconify JSON file, by name."""
    place, icons = path.relative_to(folder).as_posix(), iconify_icons(path)["icons"]
    return [
        StickerFile(key=f"{place}#{name}", noun=clean_noun(words_of_name(name)), path=path, icon=name)
        for name in sorted(icons)
        if SKIN_TONE.sub("", name) == name or SKIN_TONE.sub("", name) not in icons
    ]


def iconify_icons(path: Path) -> dict[str, Any]:
    """The parsed file; raises ValueError if it is not iconify's format."""
    status = path.stat()
    return parsed_icons(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def parsed_icons(path: Path, size: int, changed: int) -> dict[str, Any]:
    """What `iconify_icons` reads, kept as long as the file has this size and this time of its last change."""
    data = json_of(path)
    if not isinstance(data, dict) or not isinstance(data.get("icons"), dict):
        raise ValueError(f"{path} is not an iconify file: it has no table `icons`.")
    return data


def load_sticker(file: StickerFile) -> Image.Image:
    """The RGBA sticker, cut to what is visible.

    Raises ValueError for what cannot be read, for a photo (nothing is transparent) and for an empty one. A
    drawn square may be full.
    """
    image = draw_svg(file) if file.is_vector else decode_picture(file.path, str(file.path)).convert("RGBA")
    alpha = np.asarray(image.getchannel("A"))
    if int(alpha.min()) == 255 and not file.is_vector:
        raise ValueError(
            f"{file.path} has no transparency, so it is no sticker. Cut its subject out, or move it to the "
            "folder of backgrounds."
        )
    box = Image.fromarray((alpha > 8).astype(np.uint8) * 255).getbbox()
    if box is None:
        raise ValueError(f"{file.where} is fully transparent. Remove it from the folder.")
    return image.crop(box)


class MissingPackageError(ValueError):
    """A package that only vector stickers need is not installed."""


def svg_of(file: StickerFile) -> str:
    """The SVG text of a vector sticker."""
    if file.icon is None:
        with file.path.open(encoding="utf-8-sig") as text:
            return text.read(MAX_SVG_LENGTH + 1)
    data = iconify_icons(file.path)
    icon = data["icons"][file.icon]
    wide, high = (icon.get(side, data.get(side, 16)) for side in ("width", "height"))
    body = icon.get("body", "")
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}">{body}</svg>'


def draw_svg(file: StickerFile) -> Image.Image:
    """A vector sticker as pixels; needs the optional package resvg-py."""
    try:
        resvg = importlib.import_module("resvg_py")
    except ImportError as error:
        raise MissingPackageError(
            "vector stickers (SVG, iconify) need the package resvg-py: pip install resvg-py, "
            "or use PNG or WebP."
        ) from error
    try:
        text = svg_of(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.where} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    checked = checked_svg(text, file.where)
    try:
        data = resvg.svg_to_bytes(svg_string=checked, width=RASTER_SIZE, height=RASTER_SIZE)
    except ValueError as error:
        raise ValueError(
            f"{file.where} is not a readable vector picture ({error}). Replace or remove it."
        ) from error
    return Image.open(io.BytesIO(bytes(data))).convert("RGBA")

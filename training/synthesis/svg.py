"""SVG text that reads nothing but itself: what it links to is refused, the pictures inside it are checked."""

from __future__ import annotations

import base64
import re
from xml.etree import ElementTree

from ..datasets.records import decode_picture

MAX_SVG_LENGTH = 20_000_000
"""Characters of the longest drawing that is read, with the pictures inside it."""

DATA = re.compile(r"data:image/(png|jpe?g|gif|webp);base64,(.*)", re.IGNORECASE | re.DOTALL)


def checked_svg(text: str, where: str) -> str:
    """The same drawing, written anew from what was checked; `where` names it in messages.

    The program that draws would read any file a picture's href names, and wait for good on a pipe. Raises
    ValueError for such links, for pictures that `decode_picture` refuses, and for entities, which can grow
    without end.
    """
    if len(text) > MAX_SVG_LENGTH:
        raise ValueError(
            f"{where} has {len(text):,} characters, allowed are {MAX_SVG_LENGTH:,}. Make it simpler or save "
            "it as PNG."
        )
    if "<!ENTITY" in text:
        raise ValueError(
            f"{where} declares entities, which are not read. Save it again as plain SVG, or as PNG."
        )
    try:
        root = ElementTree.fromstring(text)
        for element in root.iter():
            check_links(element, where)
        return ElementTree.tostring(root, encoding="unicode")
    except (ElementTree.ParseError, RecursionError) as error:
        raise ValueError(
            f"{where} is not a readable vector picture ({error}). Replace or remove it."
        ) from error


def check_links(element: ElementTree.Element, where: str) -> None:
    """Leave an element only links into the drawing and pictures that were decoded."""
    for name in [name for name in element.attrib if local_name(name) == "href"]:
        link = element.attrib[name].strip()
        if local_name(element.tag) == "a":
            del element.attrib[name]  # a page to open with a click, which no picture has
        elif not link.startswith("#"):
            element.attrib[name] = checked_picture(link, where)


def local_name(name: str) -> str:
    """`href` of `{namespace}href`."""
    return name.rpartition("}")[2]


def checked_picture(link: str, where: str) -> str:
    """The `data:` of a picture, spelled in the one way that leaves nothing to interpret."""
    match = DATA.fullmatch(link)
    if match is None:
        raise ValueError(
            f"{where} links to {link[:60]!r}; a sticker is read from one file alone. Put the picture into it "
            "(Inkscape: Extensions > Images > Embed Images, as PNG, JPEG, GIF or WebP), or save it as PNG."
        )
    try:
        data = base64.b64decode(match[2])
    except ValueError as error:
        raise ValueError(f"{where} holds a damaged picture ({error}). Replace or remove it.") from error
    decode_picture(data, f"{where}, a picture inside it,")
    return f"data:image/{match[1].lower()};base64,{base64.b64encode(data).decode()}"

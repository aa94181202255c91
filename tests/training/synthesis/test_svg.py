"""Vector stickers: nothing outside the file is read, and what is drawn is what was drawn before the check."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
from pack.training.synthesis import svg
from pack.training.synthesis.stickers import find_stickers, load_sticker
from PIL import Image

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
DRAWINGS = {
    "gradients through xlink": (
        '<linearGradient id="g"><stop offset="0" stop-color="red"/><stop offset="1" stop-color="blue"/>'
        '</linearGradient><linearGradient id="h" xlink:href="#g" y2="1"/><path id="p" fill="url(#h)" '
        'd="M1 1h3v3z"/><use href="#p" x="3" y="2"/>'
    ),
    "a style sheet": (
        "<style><![CDATA[ svg > .a, rect:first-child { fill: red } #b { fill: lime } ]]></style>"
        '<rect class="a" width="4" height="8"/><circle id="b" cx="6" cy="4" r="2"/>'
    ),
    "clips, masks and filters": (
        '<clipPath id="c"><circle cx="4" cy="4" r="3"/></clipPath><filter id="f"><feGaussianBlur '
        'stdDeviation="1"/></filter><rect clip-path="url(#c)" filter="url(#f)" width="8" height="8"/>'
    ),
    "names of an editor": (
        '<!-- said --><g xmlns:q="urn:q" q:label="é &amp; &lt;"><metadata><q:x/></metadata>'
        '<a xlink:href="https://example.org"><rect width="5" height="5" fill="#f80"/></a></g>'
    ),
}


def drawing(body: str) -> str:
    return f'<svg xmlns="{SVG}" xmlns:xlink="{XLINK}" viewBox="0 0 8 8">{body}</svg>'


def picture(width: int = 6, height: int = 6) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (255, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def inside(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("name", DRAWINGS)
@pytest.mark.parametrize(
    "doctype", ["", f'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "{SVG}/svg11.dtd">']
)
def test_ordinary_drawings_stay_as_they_are(name: str, doctype: str) -> None:
    resvg = pytest.importorskip("resvg_py")
    text = f'<?xml version="1.0" encoding="ISO-8859-1"?>{doctype}{drawing(DRAWINGS[name])}'
    before, after = (
        bytes(resvg.svg_to_bytes(svg_string=drawn, width=64, height=64))
        for drawn in (text, svg.checked_svg(text, "a.svg"))
    )
    assert before == after
    assert Image.open(io.BytesIO(before)).getchannel("A").getextrema()[1] == 255


@pytest.mark.parametrize("element", ["image", "feImage", "use", "my-image"])
@pytest.mark.parametrize("attribute", ["href", "xlink:href"])
@pytest.mark.parametrize("link", ["{file}", "private.png", "file://{file}", "data:{file}", " \n{file}", ""])
def test_a_link_to_another_file_is_refused(tmp_path: Path, element: str, attribute: str, link: str) -> None:
    file = tmp_path / "private.png"
    file.write_bytes(picture())
    body = f'<{element} {attribute}="{link.format(file=file)}" width="8" height="8"/>'
    (tmp_path / "a.svg").write_text(drawing(f'<rect width="2" height="2"/><filter id="f">{body}</filter>'))
    pytest.importorskip("resvg_py")
    (drawn,) = (file for file in find_stickers(tmp_path) if file.is_vector)
    with pytest.raises(ValueError, match=r"a\.svg links to .*Put the picture into it"):
        load_sticker(drawn)


def test_an_icon_that_links_to_a_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    icons = {"spy": {"body": '<image href="/etc/private.png" width="16" height="16"/>'}}
    (tmp_path / "icons.json").write_text(json.dumps({"icons": icons}))
    (file,) = find_stickers(tmp_path)
    with pytest.raises(ValueError, match=r"\(icon spy\) links to '/etc/private\.png'"):
        load_sticker(file)


def test_a_picture_inside_the_file_is_drawn_and_held_to_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("resvg_py")
    place = tmp_path / "a.svg"

    def draw(link: str) -> Image.Image:
        place.write_text(drawing(f'<image href="{link}" width="8" height="8"/>'))
        return load_sticker(find_stickers(tmp_path)[0])

    assert draw(inside(picture()).replace(",", ",\n ")).getpixel((100, 100)) == (255, 0, 0, 255)
    with pytest.raises(ValueError, match=r"a\.svg, a picture inside it, is not a readable picture"):
        draw(inside(b"no picture"))
    with pytest.raises(ValueError, match=r"a\.svg links to 'data:image/svg\+xml"):
        draw(inside(drawing("").encode(), "svg+xml"))
    monkeypatch.setattr("pack.training.datasets.records.MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"a\.svg, a picture inside it, has 40x30 px, allowed are"):
        draw(inside(picture(40, 30)))


def test_what_grows_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laughs = f'<!DOCTYPE svg [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>{drawing("<text>&b;</text>")}'
    with pytest.raises(ValueError, match=r"a\.svg declares entities.*Save it again as plain SVG"):
        svg.checked_svg(laughs, "a.svg")
    with pytest.raises(ValueError, match=r"a\.svg is not a readable vector picture"):
        svg.checked_svg(drawing("<g>" * 5000 + "</g>" * 5000), "a.svg")
    sly = f'<!DOCTYPE svg [<!ATTLIST image href CDATA "/etc/private.png">]>{drawing("<image/>")}'
    with pytest.raises(ValueError, match=r"a\.svg links to '/etc/private\.png'"):
        svg.checked_svg(sly, "a.svg")
    monkeypatch.setattr(svg, "MAX_SVG_LENGTH", 100)
    with pytest.raises(ValueError, match=r"a\.svg has 1\d\d characters, allowed are 100"):
        svg.checked_svg(drawing("<g/>"), "a.svg")


def test_a_drawing_in_another_encoding_is_named(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    (tmp_path / "a.svg").write_bytes(drawing("<text>ü</text>").encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.svg is not UTF-8 text"):
        load_sticker(find_stickers(tmp_path)[0])

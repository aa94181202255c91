"""Named colours of objects and backgrounds, and how far apart two of them look."""

from __future__ import annotations

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "orange": (244, 132, 26),
    "yellow": (248, 208, 40),
    "green": (44, 158, 75),
    "blue": (38, 98, 214),
    "purple": (132, 60, 186),
    "pink": (244, 124, 178),
    "brown": (124, 74, 40),
    "teal": (20, 168, 170),
    "grey": (128, 132, 138),
    "black": (34, 34, 38),
    "white": (246, 246, 242),
}
"""Colours of objects by name, RGB 0..255."""

MAIN_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
"""Colours that are told apart in a picture of a few pixels."""

BACKGROUNDS: dict[str, Colour] = {
    "white": (255, 255, 255),
    "cream": (250, 241, 219),
    "light grey": (214, 217, 222),
    "sky blue": (190, 222, 244),
    "mint green": (202, 236, 214),
    "lavender": (221, 212, 243),
    "sand": (226, 205, 168),
    "navy blue": (28, 38, 78),
    "dark grey": (58, 60, 66),
}
"""Colours of plain and gradient backgrounds by name, RGB 0..255."""

MARK_COLOURS: dict[str, Colour] = {
    "red": (255, 0, 0),
    "green": (0, 200, 0),
    "blue": (0, 60, 255),
    "purple": (150, 0, 190),
    "yellow": (255, 225, 0),
    "cyan": (0, 210, 230),
    "magenta": (240, 0, 200),
}
"""Flat colours of segmentation and detection marks, RGB 0..255."""

MIN_CONTRAST = 0.22
"""Least distance of an object's colour from its background; chosen, not published."""


def luminance(colour: Colour) -> float:
    """Perceived brightness, 0..1."""
    red, green, blue = colour
    return (0.299 * red + 0.587 * green + 0.114 * blue) / 255


def distance(first: Colour, second: Colour) -> float:
    """How different two colours look, 0..1: Euclid in RGB with the eye's weights."""
    red, green, blue = ((one - two) / 255 for one, two in zip(first, second, strict=True))
    return (0.299 * red * red + 0.587 * green * green + 0.114 * blue * blue) ** 0.5


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """`first` with this share of `second`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def second_colour(colour: Colour) -> Colour:
    """The other colour of a pattern: dark on a light object, light on a dark one."""
    return mix(colour, (20, 20, 24), 0.7) if luminance(colour) > 0.5 else mix(colour, (255, 255, 255), 0.7)

"""What a synthetic dataset is made of. Nothing here was published: every number is chosen."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from .palette import COLOURS, MAIN_COLOURS
from .scene import to_json
from .shapes import SHAPES, SIMPLE_SHAPES
from .textures import MAIN_TEXTURES, TEXTURES

SPLITS = ("all", "train", "test")
MIN_SIDE = 32
MAX_SIDE = 2048
MAX_OBJECTS = 6
MAX_REFERENCES = 5

TASK_WEIGHTS: dict[str, float] = {
    "text_to_image": 3.0,
    "add": 2.0,
    "remove": 2.0,
    "replace": 2.0,
    "multi": 1.5,
    "recolour": 2.0,
    "retexture": 1.0,
    "move": 2.0,
    "scale": 1.5,
    "rotate": 1.5,
    "inpaint": 1.0,
    "outpaint": 1.0,
    "segment": 1.0,
    "detect": 1.0,
    "reference_generation": 2.0,
    "reference_add": 2.0,
    "reference_replace": 2.0,
    "reference_attribute": 2.0,
    "control_canny": 0.5,
    "control_segmentation": 0.5,
    "control_depth": 0.5,
}
"""Tasks of a mixed dataset and how often each is drawn. The paper's shares are unknown."""

ASKED_WEIGHTS: dict[str, float] = {"extract_object": 1.0, "extract_attribute": 1.0}
"""Tasks that are drawn only when they are asked for: they train a model of their own."""

KNOWN_TASKS = TASK_WEIGHTS | ASKED_WEIGHTS


TASK_GROUPS: dict[str, tuple[str, ...]] = {
    "edit": ("add", "remove", "replace", "multi", "recolour", "retexture"),
    "drag": ("move", "scale", "rotate"),
    "fill": ("inpaint", "outpaint"),
    "mark": ("segment", "detect"),
    "reference": ("reference_generation", "reference_add", "reference_replace", "reference_attribute"),
    "control": ("control_canny", "control_segmentation", "control_depth"),
    "text": ("text_to_image",),
    "extract": tuple(ASKED_WEIGHTS),
}
"""Names for several tasks at once."""


def tasks_from_words(words: str) -> tuple[str, ...]:
    """Tasks from names of tasks and groups, separated by commas or spaces; `all` or nothing gives ().

    Raises ValueError for a name that is neither.
    """
    chosen: dict[str, None] = {}
    for name in words.replace(",", " ").split():
        if name == "all":
            return ()
        if name not in TASK_GROUPS and name not in KNOWN_TASKS:
            raise ValueError(
                f"there is no task {name!r}; use all, a group ({', '.join(TASK_GROUPS)}) "
                f"or tasks ({', '.join(KNOWN_TASKS)})"
            )
        chosen |= dict.fromkeys(TASK_GROUPS.get(name, (name,)))
    return tuple(chosen)


@dataclass(frozen=True, kw_only=True, slots=True)
class SynthesisConfig:
    """The recipe of a dataset; together with an index it fixes a sample to the last bit."""

    width: int = 512
    height: int = 512
    reference_size: int = 512
    """Side of the square reference pictures."""
    seed: int = 0
    tasks: tuple[tuple[str, float], ...] = ()
    """Task and weight; empty means all that the material allows, as in TASK_WEIGHTS."""
    objects: tuple[int, int] = (1, 4)
    """Fewest and most objects of a scene."""
    references: tuple[int, int] = (1, 5)
    """Fewest and most reference pictures of tasks with such; scenes from sheets take three at most."""
    single_share: float = 0.2
    """Share of the scenes with one object, where nothing has to be chosen."""
    sharing: float = 0.75
    """How often an object shares shape, colour or texture with another one of its scene."""
    twins: float = 0.05
    """How often an object is an exact double of another one, told apart by its place only."""
    shapes: tuple[str, ...] = tuple(SHAPES)
    colours: tuple[str, ...] = tuple(COLOURS)
    textures: tuple[str, ...] = tuple(TEXTURES)
    plain_share: float = 0.5
    """Share of the objects without a pattern."""
    sizes: tuple[float, float, float] = (0.2, 0.28, 0.38)
    """Diameters of a small, a medium and a large object, as shares of the shorter side."""
    size_jitter: float = 0.06
    place_jitter: float = 0.04
    """Distance from the nine places, as a share of a side."""
    tilt: float = 12.0
    """Largest starting angle, degrees."""
    max_overlap: float = 0.0
    """How far the circles of two objects may reach into each other, as a share of the smaller radius."""
    margin: float = 0.02
    """Least distance of an object from the edge of the canvas, as a share of the shorter side; a negative one
    lets objects leave the canvas by so much."""
    backgrounds: tuple[str, ...] = ("plain", "gradient", "photo")
    """Kinds in use; `photo` only with a folder of photos."""
    sticker_share: float = 0.6
    """Share of objects from the sticker folder, if there is one."""
    rim: float = 0.06
    rim_share: float = 0.5
    shadow: float = 0.35
    shadow_share: float = 0.6
    shading: float = 0.16
    pattern: float = 1.0
    """Coarseness of patterns; above 1 where a stripe would be thinner than two pixels."""
    light_jitter: float = 0.0
    """Largest change of a colour channel's gain over a whole sample; 0.1 is visible."""
    drag_share: float = 0.6
    """Share of move, scale and rotate told by point tuples; the others use words."""
    split: str = "all"
    """`test`: only scenes kept for judging; `train`: only the others; `all`: both."""
    stickers_folder: str | None = None
    backgrounds_folder: str | None = None

    def __post_init__(self) -> None:
        for name in ("width", "height", "reference_size"):
            if not MIN_SIDE // 2 <= getattr(self, name) <= MAX_SIDE:
                raise ValueError(
                    f"{name} must lie in {MIN_SIDE // 2}..{MAX_SIDE} px, got {getattr(self, name)}"
                )
        if not 1 <= self.objects[0] <= self.objects[1] <= MAX_OBJECTS:
            raise ValueError(
                f"objects must be two numbers in 1..{MAX_OBJECTS}, fewest first, got {self.objects}"
            )
        if not 1 <= self.references[0] <= self.references[1] <= MAX_REFERENCES:
            raise ValueError(
                f"references must be two numbers in 1..{MAX_REFERENCES}, fewest first, got {self.references}"
            )
        for task, weight in self.tasks:
            if task not in KNOWN_TASKS:
                raise ValueError(f"there is no task {task!r}; allowed are {', '.join(KNOWN_TASKS)}")
            if weight <= 0:
                raise ValueError(f"the weight of {task} must be above 0, got {weight}")
        known = (("shapes", SHAPES), ("colours", COLOURS), ("textures", TEXTURES))
        for name, table in known:
            unknown = [item for item in getattr(self, name) if item not in table]
            if unknown or not getattr(self, name):
                raise ValueError(
                    f"{name}: {', '.join(unknown) or 'nothing'} given; allowed are {', '.join(table)}"
                )
        if unknown := [kind for kind in self.backgrounds if kind not in ("plain", "gradient", "photo")]:
            raise ValueError(f"backgrounds: {unknown[0]!r} given; allowed are plain, gradient, photo")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        if not 0 <= self.max_overlap < 1:
            raise ValueError(f"max_overlap must lie in 0..1, got {self.max_overlap}")

    def fingerprint(self) -> str:
        """A hash of every setting."""
        return hashlib.sha256(json.dumps(to_json(self), sort_keys=True).encode()).hexdigest()


def recipe_for(
    width: int,
    height: int,
    seed: int = 0,
    tasks: tuple[str, ...] = (),
    stickers_folder: str | None = None,
    backgrounds_folder: str | None = None,
) -> SynthesisConfig:
    """The recipe for a picture size: a few pixels get few shapes, clear patterns and flat objects."""
    config = SynthesisConfig(
        width=width,
        height=height,
        reference_size=max(MIN_SIDE // 2, min(width, height)),
        seed=seed,
        tasks=tuple((task, KNOWN_TASKS.get(task, 1.0)) for task in tasks),
        stickers_folder=stickers_folder,
        backgrounds_folder=backgrounds_folder,
    )
    if min(width, height) >= 192:
        return config
    return dataclasses.replace(
        config,
        shapes=SIMPLE_SHAPES,
        colours=MAIN_COLOURS,
        textures=MAIN_TEXTURES,
        sizes=(0.26, 0.34, 0.44),
        tilt=0.0,
        rim=0.0,
        shadow=0.0,
        shading=0.0,
        margin=0.01,
        pattern=1.6 if min(width, height) < 56 else 1.0,
    )

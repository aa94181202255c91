"""The words of the instructions. `{name}` slots are filled by the tasks; every slot of a list is the same.

Only the drag, segmentation, detection, remove, replace and reference examples of the papers are public;
the other wordings are chosen.
"""

from __future__ import annotations

from .dice import Dice
from .words import sentence

TEMPLATES: dict[str, tuple[str, ...]] = {
    "add": (
        "Add {new} {place}.",
        "Add {new} {place} of the image.",
        "Put {new} {place}.",
        "Place {new} {place} of the picture.",
        "Insert {new} {place}.",
        "Draw {new} {place}.",
        "{place} of the image, add {new}.",
        "There should be {new} {place}.",
    ),
    "remove": (
        "Remove {old}.",
        "Delete {old}.",
        "Erase {old}.",
        "Take {old} away.",
        "Eliminate {old}.",
        "Get rid of {old}.",
        "Remove {old} from the image.",
        "The picture should not show {old}.",
    ),
    "replace": (
        "Replace {old} with {new}.",
        "Swap {old} for {new}.",
        "Change {old} into {new}.",
        "Turn {old} into {new}.",
        "Substitute {new} for {old}.",
        "Exchange {old} for {new}.",
        "Put {new} where {old} is.",
        "Instead of {old}, show {new}.",
    ),
    "recolour": (
        "Make {old} {colour}.",
        "Change the colour of {old} to {colour}.",
        "Paint {old} {colour}.",
        "Turn {old} {colour}.",
        "Recolour {old} in {colour}.",
        "{old} should be {colour}.",
        "Give {old} {a_colour} colour.",
    ),
    "retexture": (
        "Make {old} {texture}.",
        "{old} should be {texture}.",
        "Give {old} {a_texture} {surface}.",
        "Change the {surface} of {old} to {texture}.",
        "Let {old} have {a_texture} {surface}.",
    ),
    "move": (
        "Move {old} {goal}.",
        "Shift {old} {goal}.",
        "Move {old} {goal} of the image.",
        "Bring {old} {goal}.",
        "Relocate {old} {goal} of the picture.",
    ),
    "scale": (
        "Make {old} {factor} as large.",
        "Scale {old} to {share} of its size.",
        "Resize {old} to {share} of its present size.",
        "Change the size of {old} to {share}.",
    ),
    "rotate": (
        "Rotate {old} by {angle} degrees {sense}.",
        "Turn {old} {sense} by {angle} degrees.",
        "Rotate {old} {angle} degrees {sense}.",
        "Revolve {old} {sense} by {angle} degrees.",
    ),
    "inpaint": (
        "{caption}",
        "Fill in the black area. {caption}",
        "Complete the picture. {caption}",
        "Restore what is missing. {caption}",
    ),
    "outpaint": (
        "{caption}",
        "Extend the picture over the black area. {caption}",
        "Complete the picture beyond its edges. {caption}",
        "Paint the missing border. {caption}",
    ),
    "segment": (
        "Segment {old} using {colour}.",
        "Segment {old} in {colour}.",
        "Segment {old} with {colour}.",
        "Highlight {old} with {colour}.",
        "Mark the area of {old} in {colour}.",
        "Fill {old} with flat {colour}.",
    ),
    "detect": (
        "Detect and mark {old} using {a_colour} box.",
        "Detect {old} with {a_colour} box.",
        "Draw {a_colour} box around {old}.",
        "Find {old} and frame it with {a_colour} box.",
        "Locate {old} and mark it with {a_colour} rectangle.",
    ),
    "reference_add": (
        "Add {subject} from {other} to {first}, {place}.",
        "Add {subject} from {other} {place} of {first}.",
        "Put {subject} from {other} {place} of {first}.",
        "Place {subject} of {other} {place} of {first}.",
        "Insert {subject} shown in {other} {place} of {first}.",
    ),
    "reference_replace": (
        "Replace {old} in {first} with {subject} from {other}.",
        "Replace {old} in {first} with {subject} in {other}.",
        "Swap {old} in {first} for {subject} from {other}.",
        "Exchange {old} of {first} for {subject} of {other}.",
        "Put {subject} from {other} where {old} is in {first}.",
    ),
    "reference_attribute": (
        "Make {old} in {first} have the same {attribute} as {subject} in {other}.",
        "Give {old} in {first} the {attribute} of {subject} in {other}.",
        "Give {old} in {first} the same {attribute} as {subject} from {other}.",
        "Change the {attribute} of {old} in {first} to that of {subject} in {other}.",
        "Let {old} in {first} take on the {attribute} of {subject} in {other}.",
    ),
    "extract_object": (
        "{subject} from the given image is {place}.",
        "{place} there is {subject}, taken from the given image.",
        "{subject} of the given image is placed {place}.",
    ),
    "extract_attribute": (
        "{new} with the same {attribute} as {subject} in the given image is {place}.",
        "{place} there is {new} with the {attribute} of {subject} from the given image.",
        "{new} is placed {place}, with the {attribute} taken from {subject} in the given image.",
    ),
    "picked": (
        "{subject}, derived from {other}, is {place}.",
        "{place} is {subject}, taken from {other}.",
        "{subject} from {other} is {place}.",
        "{subject}, included from {other}, is placed {place}.",
        "{place} of the picture there is {subject} from {other}.",
    ),
    "layout_list": (
        "{items} {background}.",
        "A picture of {items} {background}.",
        "{items}, all {background}.",
        "An image that shows {items} {background}.",
    ),
    "layout_one": (
        "{items} {background}.",
        "A picture of {items} {background}.",
        "An image that shows {items} {background}.",
    ),
    "layout_first": ("{place} of the image is {new}.", "{new} is {place}.", "{place} there is {new}."),
    "layout_next": (
        "{place} is {new}.",
        "{place}, there is {new}.",
        "{new} is placed {place}.",
        "{new} is {place}.",
    ),
    "photo": ("Fill in the black area.", "Complete the photo.", "Restore the missing part of the photo."),
}

POLITE = ("Please {}", "Could you {}", "I would like you to {}")
POLITE_SHARE = 0.06
SPOKEN = frozenset({"add", "remove", "replace", "recolour", "move", "rotate", "segment", "detect"})
"""Tasks whose templates are commands and may be asked politely."""


COMMANDS = frozenset(
    words.split(" ")[0]
    for task in SPOKEN
    for words in TEMPLATES[task]
    if not words.startswith(("{", "The ", "There ", "Instead "))
)
"""First words of the templates that are commands."""


def fill(dice: Dice, template: str, **slots: str) -> str:
    """One of the templates as a sentence."""
    words = sentence(dice.choice(TEMPLATES[template]).format(**slots))
    if template in SPOKEN and dice.chance(POLITE_SHARE) and words.split(" ")[0] in COMMANDS:
        asked = dice.choice(POLITE).format(words[0].lower() + words[1:])
        return asked[:-1] + "?" if asked.startswith("Could") else asked
    return words

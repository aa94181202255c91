"""OmniGen's prompt language: the wrapper, picture tags and their errors, and the way to token ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from .layout import Slot
from .prefix import TokenSequence

WRAPPER = (
    "<|user|>\nGenerate an image according to the following instructions\n"
    "{prompt}<|end|>\n<|assistant|>\n<|diffusion|>"
)
NEGATIVE_PROMPT = (
    "low quality, jpeg artifacts, ugly, duplicate, morbid, mutilated, extra fingers, mutated hands, "
    "poorly drawn hands, poorly drawn face, mutation, deformed, blurry, dehydrated, bad anatomy, "
    "bad proportions, extra limbs, cloned face, disfigured, gross proportions, malformed limbs, "
    "missing arms, missing legs, extra arms, extra legs, fused fingers, too many fingers."
)
UNCONDITIONAL_PROMPT = "<cfg>"
"""What training puts in place of a dropped instruction; sampling uses the negative prompt instead."""
FEW_SHOT_HEAD = "According to the following examples, generate an output for the input.\n"

TAG = re.compile(r"<\|image_(\d+)\|>")
PIECE = re.compile(r"<img>|</img>|<\|[^|<>\s]*\|>|</?s>")
PICTURE = re.compile(r"<img><\|image_([1-9]\d*)\|></img>")
MENTION = re.compile(r"\b(?:image|picture|photo|img)\s*#?\s*([1-9]\d*)\b(?!\|>)", re.IGNORECASE)


def tag(number: int) -> str:
    """The words that stand for reference `number`, counted from 1."""
    return f"<img><|image_{number}|></img>"


def image_only_prompt(num_images: int) -> str:
    """The prompt of the picture branch of guidance: all pictures, no instruction."""
    return " ".join(tag(number) for number in range(1, num_images + 1))


def tag_mentions(prompt: str, num_images: int | None = None) -> str:
    """Turn plain mentions ("image 1", "Picture 2") into tags; tags already there are left alone.

    With `num_images` a larger number is no mention: "turn the image 90 degrees".
    """

    def tagged(match: re.Match[str]) -> str:
        number = int(match[1])
        return tag(number) if num_images is None or 0 < number <= num_images else match[0]

    return MENTION.sub(tagged, prompt)


def check_mentions(prompt: str, num_images: int, limit: int) -> None:
    """Raise ValueError, naming the place, for a mention that becomes a tag and has no picture."""
    for mention in MENTION.finditer(prompt):
        if num_images < int(mention[1]) <= limit:
            raise ValueError(
                f"{mention[0]!r} {excerpt(prompt, mention.start())} has no picture: "
                f"{num_images} {'is' if num_images == 1 else 'are'} wired. With prompt_style 'mentions' such "
                f"words become the tag {tag(int(mention[1]))}; wire the picture, change the number or, if no "
                "picture is meant, the words"
            )


def tagged_prompt(prompt: str, num_images: int) -> str:
    """A training caption made to fit its pictures: mentions become tags, missing tags go in front.

    Without pictures the tags go; a dropped caption with pictures is the image-only prompt.
    """
    if num_images == 0:
        return PICTURE.sub("", prompt).strip()
    if prompt == UNCONDITIONAL_PROMPT:
        return image_only_prompt(num_images)
    prompt = tag_mentions(prompt, num_images)
    missing = [tag(number) for number in range(1, num_images + 1) if tag(number) not in prompt]
    return " ".join([*missing, prompt.strip()])


def few_shot_prompt(prompt: str, num_images: int) -> str:
    """Pictures as example pairs (input, output, ..., input), the task's words in front if any."""
    if num_images < 3 or num_images % 2 == 0:
        raise ValueError(
            f"few-shot needs pairs of example pictures and one input, so 3 or 5 pictures; got {num_images}"
        )
    pairs = [f"Input: {tag(number)}\nOutput: {tag(number + 1)}\n\n" for number in range(1, num_images - 1, 2)]
    words = f"{prompt.strip()}\n" if prompt.strip() else ""
    return f"{words}{FEW_SHOT_HEAD}{''.join(pairs)}Input: {tag(num_images)}\nOutput: "


def excerpt(prompt: str, position: int) -> str:
    """Where an error is: the character's number and the words around it."""
    around = prompt[max(position - 15, 0) : position + 25].replace("\n", " ")
    return f"at character {position + 1} (…{around}…)"


def check_tags(prompt: str, num_images: int) -> None:
    """Raise ValueError, naming the place, unless the tags are whole and name exactly the pictures wired."""
    allowed = (
        f"write {tag(1)} for the first picture, {tag(2)} for the second, or choose prompt_style 'mentions' "
        "and write image 1, image 2 (picture 1, photo 1 and img 1 count too, 'the first image' does not)"
    )
    pictures = {match.start(): match for match in PICTURE.finditer(prompt)}
    inside = {spot for start, match in pictures.items() for spot in range(start, match.end())}
    for piece in PIECE.finditer(prompt):
        if piece.start() not in inside:
            raise ValueError(
                f"{piece[0]!r} {excerpt(prompt, piece.start())} is not a whole picture tag; {allowed}"
            )
    named = {int(match[1]) for match in pictures.values()}
    for start, match in pictures.items():
        if int(match[1]) > num_images:
            raise ValueError(
                f"{match[0]} {excerpt(prompt, start)} has no picture: "
                f"{num_images} {'is' if num_images == 1 else 'are'} wired; wire it or change the number"
            )
    missing = [number for number in range(1, num_images + 1) if number not in named]
    if missing:
        found = ", ".join(tag(number) for number in sorted(named)) or "none"
        raise ValueError(
            f"picture {missing[0]} is wired but {tag(missing[0])} does not occur in the prompt "
            f"(tags found: {found}); {allowed}, or take the picture off the wire"
        )


def tokenize_prompt(
    prompt: str, image_tokens: Sequence[int], encode: Callable[[str, bool], list[int]]
) -> TokenSequence:
    """Wrap the prompt and turn it into ids with slots; `image_tokens` are the pictures' token counts.

    `encode(text, first)` gives the ids of one piece of text, with the start token only if `first`. A picture
    mentioned twice has two slots, as in the authors' processor.
    """
    check_tags(prompt, len(image_tokens))
    text = WRAPPER.replace("{prompt}", prompt)
    ids: list[int] = []
    slots = []
    position = 0
    for match in TAG.finditer(text):
        ids += encode(text[position : match.start()], position == 0)
        image = int(match[1]) - 1
        slots.append(Slot(len(ids), len(ids) + image_tokens[image], image))
        ids += [0] * image_tokens[image]
        position = match.end()
    ids += encode(text[position:], position == 0)
    return TokenSequence(tuple(ids), tuple(slots))

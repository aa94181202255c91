"""The pictures of one request, in order, with the task: the one thing every node that needs them shares."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from .content import tensor_key
from .sizes import MAX_SIDE, TOKEN_PIXELS, kontext_bucket, pad_to_token, resize_pictures

MAX_REFERENCES = 5


class Task(str, Enum):
    """What the pictures are for; instructions of both tasks look alike, so the user says which it is."""

    EDIT = "edit"
    GENERATE = "generate"


class ResizeRule(str, Enum):
    """What happens to a picture's size before any network sees it."""

    KONTEXT = "kontext"
    NONE = "none"
    EXACT = "exact"


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceSet:
    """Reference pictures of one task, RGB float B H W 3 in 0..1, ready to encode; an edit's source is first.

    The first picture may be a batch, edited one by one; each other picture is one, or as many as the first.
    """

    task: Task
    images: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if len(self.images) > MAX_REFERENCES:
            raise ValueError(
                f"got {len(self.images)} reference images; DreamOmni2 was trained with 1 to "
                f"{MAX_REFERENCES}. Leave some out."
            )
        for order, image in enumerate(self.images, start=1):
            check_picture(image, order, channels=(3,))
        self._check_batches()

    def _check_batches(self) -> None:
        for order, image in enumerate(self.images[1:], start=2):
            if len(image) not in (1, self.batch_size):
                raise ValueError(
                    f"image_{order} is a batch of {len(image)} and image_1 a batch of {self.batch_size}: "
                    "a reference is either one picture, used for the whole batch, or as many as image_1. "
                    "To give several references, connect each picture to an input of its own."
                )

    @property
    def batch_size(self) -> int:
        """Pictures in the first reference, edited one by one; 1 without references."""
        return len(self.images[0]) if self.images else 1

    def content_key(self) -> str:
        """Hash of the task and of every pixel; equal keys mean equal requests."""
        digest = hashlib.blake2b(self.task.value.encode(), digest_size=16)
        for image in self.images:
            digest.update(picture_key(image).encode())
        return digest.hexdigest()


def picture_key(image: Tensor) -> str:
    """Hash of a picture's shape and pixels."""
    return tensor_key(image.float())


def build_references(task: Task, resize: ResizeRule, slots: Sequence[Tensor | None]) -> ReferenceSet:
    """References from numbered inputs: checked, alpha flattened on white, resized by the rule.

    Raises ValueError for an empty input between two pictures, and for pictures no network here can read.
    """
    filled = [image is not None for image in slots]
    count = sum(filled)
    if not all(filled[:count]):
        gap = filled.index(False) + 1
        raise ValueError(
            f"image_{gap} is empty but a later image is connected; the order of the images tells the model "
            f"which is which. Connect image_{gap}, or move the later images up."
        )
    images = [image for image in slots if image is not None]
    return ReferenceSet(task, tuple(prepare_picture(image, n, resize) for n, image in enumerate(images, 1)))


def prepare_picture(image: Tensor, order: int, resize: ResizeRule) -> Tensor:
    """Pictures (B, H, W, 1|3|4) of input `order` as RGB of the size the networks get."""
    check_picture(image, order, channels=(1, 3, 4))
    rgb = flatten_on_white(image.float()).clamp(0, 1)
    if resize is ResizeRule.EXACT:
        return rgb
    if resize is ResizeRule.NONE:
        return pad_to_token(rgb)
    return resize_pictures(rgb, *kontext_bucket(rgb.shape[2], rgb.shape[1]))


def flatten_on_white(image: Tensor) -> Tensor:
    """Pictures (B, H, W, 1|3|4) as RGB; transparent parts become white, as in the models' training."""
    if image.shape[-1] == 1:
        return image.expand(*image.shape[:-1], 3).contiguous()
    if image.shape[-1] == 3:
        return image
    alpha = image[..., 3:].clamp(0, 1)
    return image[..., :3] * alpha + (1 - alpha)


def check_picture(image: Tensor, order: int, channels: tuple[int, ...]) -> None:
    """Raise ValueError when input `order` is not a batch of pictures that can be used."""
    if image.ndim != 4 or len(image) == 0 or image.shape[-1] not in channels:
        raise ValueError(
            f"image_{order} has the shape {tuple(image.shape)}; an IMAGE is (pictures, height, width, "
            f"channels) with {' or '.join(map(str, channels))} channels and at least one picture."
        )
    height, width = image.shape[1:3]
    if min(height, width) < TOKEN_PIXELS or max(height, width) > MAX_SIDE:
        raise ValueError(
            f"image_{order} is {width}x{height} pixels; sides from {TOKEN_PIXELS} to {MAX_SIDE} can be used. "
            "Resize it, or connect another picture."
        )
    if not bool(torch.isfinite(image).all()):
        raise ValueError(
            f"image_{order} contains NaN or infinite values, which would spoil every picture made from it. "
            "Look at the node that makes it (a VAE decoding in half precision is the usual cause)."
        )

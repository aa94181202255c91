"""The set of references: order, task, sizes, batches and every refusal."""

from __future__ import annotations

import pytest
import torch
from pack.dit.references import ReferenceSet, ResizeRule, Task, build_references


def picture(
    width: int = 32, height: int = 48, batch: int = 1, channels: int = 3, seed: int = 0
) -> torch.Tensor:
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(seed))


def built(*slots: torch.Tensor | None, resize: str = "none", task: str = "edit") -> ReferenceSet:
    return build_references(Task(task), ResizeRule(resize), slots)


def test_order_and_own_sizes_are_kept() -> None:
    references = built(picture(32, 48), picture(64, 16), None, None, None)
    assert [tuple(image.shape[1:3]) for image in references.images] == [(48, 32), (16, 64)]
    assert references.task is Task.EDIT


def test_the_kontext_rule_resizes_each_to_its_bucket() -> None:
    references = built(picture(40, 60), picture(60, 40), resize="kontext")
    assert [tuple(image.shape) for image in references.images] == [(1, 1248, 832, 3), (1, 832, 1248, 3)]


def test_alpha_is_flattened_on_white() -> None:
    image = torch.cat((picture(), torch.zeros(1, 48, 32, 1)), -1)
    image[:, :10, :, 3] = 1
    image[:, 10:20, :, 3] = 0.5
    (flat,) = built(image).images
    assert torch.equal(flat[:, :10], image[:, :10, :, :3])
    torch.testing.assert_close(flat[:, 10:20], image[:, 10:20, :, :3] / 2 + 0.5)
    assert bool((flat[:, 20:] == 1).all())


def test_grey_becomes_rgb() -> None:
    (flat,) = built(picture(channels=1)).images
    assert flat.shape[-1] == 3
    assert torch.equal(flat[..., 0], flat[..., 2])


def test_no_images_is_a_valid_set() -> None:
    references = built(None, None)
    assert references.images == ()
    assert references.batch_size == 1


def test_a_batch_is_edited_against_single_references_or_as_many() -> None:
    assert built(picture(batch=3), picture(), picture(batch=3)).batch_size == 3
    with pytest.raises(ValueError, match=r"image_2 is a batch of 2 and image_1 a batch of 3"):
        built(picture(batch=3), picture(batch=2))
    with pytest.raises(ValueError, match="connect each picture to an input of its own"):
        built(picture(), picture(batch=2))


def test_an_empty_slot_in_the_middle_is_named() -> None:
    with pytest.raises(ValueError, match="image_2 is empty but a later image"):
        built(picture(), None, picture())
    with pytest.raises(ValueError, match="image_1 is empty"):
        built(None, picture())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_refused(bad: float) -> None:
    image = picture()
    image[0, 3, 4, 1] = bad
    with pytest.raises(ValueError, match="image_2 contains NaN or infinite"):
        built(picture(), image)


@pytest.mark.parametrize("size", [(1, 1), (15, 64), (16400, 16)])
def test_sides_that_cannot_be_used_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"image_1 is {size[0]}x{size[1]} pixels; sides from 16 to 16384"):
        built(picture(*size))


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_1 has the shape \(48, 32, 3\)"):
        built(picture()[0])
    with pytest.raises(ValueError, match="image_1 has the shape"):
        built(picture(channels=2))


def test_more_than_five_are_refused() -> None:
    with pytest.raises(ValueError, match="got 6 reference images"):
        built(*[picture()] * 6)
    with pytest.raises(ValueError, match="got 6 reference images"):
        ReferenceSet(Task.EDIT, (picture(),) * 6)


def test_the_key_follows_content_task_and_order() -> None:
    one, other = picture(seed=1), picture(seed=2)
    key = built(one, other).content_key()
    assert built(one.clone(), other.clone()).content_key() == key
    others = [built(other, one), built(one), built(one, other, task="generate"), built()]
    assert key not in [references.content_key() for references in others]
    assert built(picture(32, 48)).content_key() != built(picture(48, 32)).content_key()


def test_exact_keeps_sizes_to_the_pixel() -> None:
    odd = picture(24, 30)
    assert torch.equal(built(odd, resize="exact").images[0], odd)
    assert built(odd).images[0].shape == (1, 32, 32, 3)

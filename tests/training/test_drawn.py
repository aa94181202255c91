"""Samples drawn while training: the pipeline's own, in the order of the steps, kept apart for validation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pack.training.config import ValidationConfig
from pack.training.drawn import DrawnSamples, DrawnStore, pixels, read_drawn
from pack.training.samples import StepOrder, split_held_out
from pack.training.synthesis.config import recipe_for
from pack.training.synthesis.samples import Synthesizer
from pack.training.trainer import RunFolder, dataset_fingerprint


def samples(**changes) -> DrawnSamples:
    tasks = ("remove", "text_to_image", "reference_add")
    return DrawnSamples(**{"config": recipe_for(32, 32, seed=4, tasks=tasks), "count": 60, **changes})


@pytest.fixture(scope="module")
def store():
    made = DrawnStore(samples())
    yield made
    made.close()


def as_bytes(picture: torch.Tensor) -> np.ndarray:
    return ((picture + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(np.uint8)


def test_a_drawn_sample_is_the_pipelines(store) -> None:
    synthesizer, seen = Synthesizer(samples().config), set()
    for index in range(30):
        one, two = store.take(index, "full"), synthesizer.sample(index)
        seen.add(one.task)
        assert one.instruction == two.plan.instruction
        assert np.array_equal(as_bytes(one.target), two.target)
        shown = [*([two.source] if two.source is not None else []), *two.references]
        assert len(one.references) == len(one.reference_pixels) == len(shown)
        assert all(np.array_equal(as_bytes(a), b) for a, b in zip(one.references, shown, strict=True))
        assert one.has_source == (two.source is not None) == (one.mask is not None)
        if one.mask is not None:
            assert np.array_equal(one.mask[0].bool().numpy(), two.mask)
    assert seen == {"remove", "text_to_image", "reference_add"}


def test_dropout_takes_words_or_pictures_away(store) -> None:
    index = next(i for i in range(20) if store.read(i).task == "reference_add")
    full = store.read(index)
    assert full.instruction and len(full.references) >= 2
    assert store.read(index, "no_caption").instruction == ""
    bare = store.read(index, "no_references")
    assert bare.instruction == full.instruction
    assert (bare.references, bare.reference_pixels, bare.has_source) == ((), (), False)
    assert store.read(index, "no_condition").instruction == ""


def test_some_samples_are_held_out(store) -> None:
    config = ValidationConfig(fraction=0.2, smallest_split=4)
    training, held_out = split_held_out(store.entries, config)
    assert len(held_out) == 12 and sorted(training + held_out) == list(range(60))
    assert [entry.id for entry in store.entries[3:5]] == ["00000003", "00000004"]
    with pytest.raises(IndexError, match="there are 60 samples, got number 60"):
        store.entries[60]


def test_an_easy_beginning_is_seen_first_and_in_order(tmp_path) -> None:
    easy = recipe_for(32, 32, seed=9, tasks=("recolour",))
    mixed = samples(easy=easy, easy_count=20)
    store, first, mixture = DrawnStore(mixed), Synthesizer(easy), Synthesizer(mixed.config)
    seen = [store.read(index).instruction for index in range(24)]
    store.close()
    assert seen[:20] == [first.sample(index).plan.instruction for index in range(20)]
    assert seen[20:] == [mixture.sample(index).plan.instruction for index in range(20, 24)]
    order = StepOrder(["same"] * 60, 1, 0, 8, 8, shuffled=not store.in_order)
    assert [index for step in range(8) for index in order.batch(step)] == [*range(60), *range(4)]
    later = StepOrder(["same"] * 60, 1, 1, 8, 8, shuffled=not store.in_order, first=24)
    assert later.batch(0) == order.batch(3), "a second stage goes on with the samples that follow"
    mixed.write(tmp_path / "recipe.json")
    assert read_drawn(tmp_path / "recipe.json") == mixed
    assert len({part.fingerprint() for part in (mixed, samples(), samples(easy=easy, easy_count=21))}) == 3
    with pytest.raises(ValueError, match=r"easy_count must lie in 0\.\.60 and needs an easy recipe, got 61"):
        samples(easy=easy, easy_count=61)
    with pytest.raises(ValueError, match="needs an easy recipe, got 5"):
        samples(easy_count=5)


def test_a_run_folder_with_a_recipe_draws(tmp_path) -> None:
    place = RunFolder(folder=tmp_path, cache=tmp_path / "cache")
    samples().write(place.recipe(32))
    assert read_drawn(place.recipe(32)) == samples()
    opened = place.open_samples(32)
    opened.close()
    assert isinstance(opened, DrawnStore)
    assert opened.shapes() == [[[3, 32, 32]] * 3]
    other = DrawnStore(samples(count=61))
    other.close()
    assert dataset_fingerprint(opened.entries) != dataset_fingerprint(other.entries)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        samples(count=0)


def test_pixels_reach_from_minus_one_to_one() -> None:
    picture = np.array([[[0, 255, 0]]], np.uint8)
    assert torch.equal(pixels(picture), torch.tensor([-1.0, 1.0, -1.0]).view(3, 1, 1))

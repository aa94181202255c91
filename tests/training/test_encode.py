"""The cache and what fills it: content keys, buckets, variants, tasks, held-out split."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from pack.dit.references import ResizeRule, Task, build_references
from pack.training import encode
from pack.training.cache import TensorCache, encoded_picture_key, prompt_key
from pack.training.config import ObjectiveConfig, RunConfig, StageConfig, ValidationConfig
from pack.training.dataset import EditSample, open_dataset
from pack.training.encode import Encoding, bucket_size, encode_dataset, mask_of, read_manifest
from pack.training.families import load_family
from pack.training.families.base import EncodePlan
from pack.training.samples import StepOrder, drawn_variant, split_held_out
from pack.training.timesteps import slot_generator
from pack.training.trainer import dataset_fingerprint
from PIL import Image
from safetensors.torch import load_file


class CountingPictures:
    identity = "pictures"

    def __init__(self) -> None:
        self.sizes = []

    def __call__(self, image: Image.Image) -> torch.Tensor:
        self.sizes.append(image.size)
        return torch.full((4, image.height // 8, image.width // 8), image.getpixel((0, 0))[0] / 255)


class CountingPrompts:
    identity = "prompts"

    def __init__(self) -> None:
        self.prompts = []

    def __call__(self, prompt: str, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        self.prompts.append((prompt, len(images)))
        return {"context": torch.tensor([float(len(prompt))])}


def test_a_damaged_picture_in_the_cache_is_encoded_anew(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path / "cache")
    made = dataclasses.replace(encoding(tmp_path), cache=cache)
    picture = Image.new("RGB", (64, 64), (9, 9, 9))
    key, shape = made.picture(picture, "s")
    whole = cache.path(key).read_bytes()
    cache.path(key).write_bytes(whole[:-1])
    assert made.picture(picture, "s") == (key, shape)
    assert cache.path(key).read_bytes() == whole
    assert len(made.encode_picture.sizes) == 2
    made.picture(picture, "s")
    assert len(made.encode_picture.sizes) == 2


def dataset_folder(folder: Path, count: int = 4) -> Path:
    lines = []
    for number in range(count):
        names = {}
        for kind, size in (("source", (96, 64)), ("reference", (64, 128)), ("target", (96, 64))):
            names[kind] = f"{kind}{number}.png"
            shade = 20 * number + {"source": 1, "reference": 2, "target": 3}[kind]
            Image.new("RGB", size, (shade, shade, shade)).save(folder / names[kind])
        Image.new("L", (96, 64), 255).save(folder / f"mask{number}.png")
        lines.append(
            {
                "task": "add",
                "instruction": f"do {number}",
                "source": names["source"],
                "references": [names["reference"]],
                "target": names["target"],
                "mask": f"mask{number}.png",
                "id": str(number),
            }
        )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "samples.jsonl").write_text(text)
    return folder


def encoding(folder: Path, plan: EncodePlan | None = None, **changes: object) -> Encoding:
    config = RunConfig(name="x", family="kontext", stages=(StageConfig(resolution=64),), **changes)
    return Encoding(
        config=config,
        plan=plan or EncodePlan(image_encoding="vae", prompt_encoding="clip", size_multiple=16),
        resolution=64,
        cache=TensorCache(folder / "cache"),
        encode_picture=CountingPictures(),
        encode_prompt=CountingPrompts(),
    )


def test_everything_is_encoded_once_and_found_again_by_content(tmp_path: Path) -> None:
    dataset = open_dataset(dataset_folder(tmp_path))
    first = encoding(tmp_path)
    entries = encode_dataset(first, dataset, tmp_path / "samples-64.jsonl", lambda done, total: None)
    assert len(first.encode_picture.sizes) == 12
    assert len(first.encode_prompt.prompts) == 4
    assert read_manifest(tmp_path / "samples-64.jsonl") == entries
    again = encoding(tmp_path)
    assert encode_dataset(again, dataset, tmp_path / "samples-64.jsonl", lambda done, total: None) == entries
    assert again.encode_picture.sizes == []
    for number, entry in enumerate(entries):
        latents = [again.cache.read(key)["latent"] for key in (entry.target, *entry.references)]
        shades = [round(latent.mean().item() * 255) for latent in latents]
        assert shades == [20 * number + 3, 20 * number + 1, 20 * number + 2]
        assert entry.has_source
        assert again.cache.read(entry.mask)["latent"].min() == 1


class SpoiltPictures(CountingPictures):
    def __call__(self, image: Image.Image) -> torch.Tensor:
        return super().__call__(image) / 0


class SpoiltPrompts(CountingPrompts):
    def __call__(self, prompt: str, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        return {"context": torch.tensor([1.0, float("nan")])}


@pytest.mark.parametrize(
    ("encoder", "named"),
    [
        ({"encode_picture": SpoiltPictures()}, "the VAE"),
        ({"encode_prompt": SpoiltPrompts()}, "the text encoder"),
    ],
)
def test_encoders_that_make_no_numbers_are_refused(tmp_path: Path, encoder: dict, named: str) -> None:
    dataset = open_dataset(dataset_folder(tmp_path))
    work = dataclasses.replace(encoding(tmp_path), **encoder)
    with pytest.raises(ValueError, match=f"sample 0: {named} made .* Half precision is the usual cause"):
        encode_dataset(work, dataset, tmp_path / "samples-64.jsonl", lambda done, total: None)
    found = [load_file(path) for path in (tmp_path / "cache").rglob("*.safetensors")]
    assert all(bool(tensor.isfinite().all()) for tensors in found for tensor in tensors.values())


def test_pictures_keep_their_own_buckets(tmp_path: Path) -> None:
    entry = encoding(tmp_path).sample(open_dataset(dataset_folder(tmp_path))[0])
    target, source, reference = entry.shapes
    assert target == source == [4, 6, 10]
    assert reference == [4, 12, 6]


@pytest.mark.parametrize("family", ["kontext", "omnigen"])
def test_an_edits_source_has_the_targets_size_however_small_references_are(
    tmp_path: Path, family: str
) -> None:
    sample = open_dataset(dataset_folder(tmp_path))[0]
    plan = load_family(family).encode_plan(RunConfig(name="x", family=family))
    target, sizes = encoding(tmp_path, plan, reference_resolution=32).sizes(sample)
    assert target == (80, 48)
    assert sizes == [(80, 48), (16, 48)]


def test_references_are_no_larger_than_targets(tmp_path: Path) -> None:
    sample = open_dataset(dataset_folder(tmp_path))[0]
    assert encoding(tmp_path, reference_resolution=512).sizes(sample) == encoding(tmp_path).sizes(sample)


def shaped_sample(source: tuple[int, int], reference: tuple[int, int]) -> EditSample:
    return EditSample(
        source=Image.new("RGB", source),
        references=(Image.new("RGB", reference),),
        instruction="do",
        task="add",
        target=Image.new("RGB", source),
        mask=None,
        id="0",
    )


@pytest.mark.parametrize("source", [(400, 300), (300, 400), (512, 512), (900, 100), (1568, 672)])
@pytest.mark.parametrize("family", ["kontext", "vlm"])
def test_kontext_and_translator_at_1024_see_the_sizes_of_inference(
    tmp_path: Path, family: str, source: tuple[int, int]
) -> None:
    sample = shaped_sample(source, (500, 333))
    pictures = [
        torch.zeros(1, picture.height, picture.width, 3) for picture in (sample.target, *sample.references)
    ]
    shown = build_references(Task.EDIT, ResizeRule.KONTEXT, pictures).images
    expected = [(image.shape[2], image.shape[1]) for image in shown]
    plan = load_family(family).encode_plan(RunConfig(name="x", family=family))
    work = dataclasses.replace(encoding(tmp_path, plan), resolution=1024)
    assert work.sizes(sample) == (expected[0], expected)


def test_kontexts_sizes_are_for_kontext_at_1024_only(tmp_path: Path) -> None:
    sample = shaped_sample((400, 300), (400, 300))
    found = {}
    for family, resolution in (("kontext", 1024), ("kontext", 768), ("omnigen", 1024)):
        plan = load_family(family).encode_plan(RunConfig(name="x", family=family))
        work = dataclasses.replace(encoding(tmp_path, plan, reference_resolution=512), resolution=resolution)
        found[family, resolution] = work.sizes(sample)
    assert found == {
        ("kontext", 1024): ((1184, 880), [(1184, 880), (576, 448)]),
        ("kontext", 768): ((864, 672), [(864, 672), (576, 448)]),
        ("omnigen", 1024): ((1152, 896), [(1152, 896), (576, 448)]),
    }


def test_a_cache_of_other_sizes_is_not_taken_for_kontexts(tmp_path: Path) -> None:
    sample = shaped_sample((400, 300), (300, 400))
    before = dataclasses.replace(encoding(tmp_path), resolution=1024)
    plan = dataclasses.replace(before.plan, kontext_sizes=True)
    now = dataclasses.replace(before, plan=plan, encode_picture=CountingPictures())
    old, new = before.sample(sample), now.sample(sample)
    assert not {old.target, *old.references} & {new.target, *new.references}
    assert new.shapes == [[4, 110, 148], [4, 110, 148], [4, 148, 110]]
    assert dataset_fingerprint([new]) == dataset_fingerprint([old]), "a run of before goes on"


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((1024, 1024), 1024, (1024, 1024)),
        ((64, 64), 64, (64, 64)),
        ((1920, 1080), 512, (672, 384)),
        ((1080, 1920), 512, (384, 672)),
        ((5000, 100), 512, (1024, 256)),
        ((7, 7), 32, (32, 32)),
    ],
)
def test_buckets(size: tuple[int, int], resolution: int, expected: tuple[int, int]) -> None:
    width, height = bucket_size(*size, resolution, 16)
    assert (width, height) == expected
    assert 0.6 < width * height / resolution**2 < 1.6


def test_keys_change_with_content_encoder_and_pictures_only() -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    assert encoded_picture_key(red, "vae") == encoded_picture_key(red.copy(), "vae")
    assert encoded_picture_key(red, "vae") != encoded_picture_key(blue, "vae")
    assert encoded_picture_key(red, "vae") != encoded_picture_key(red, "other vae")
    assert encoded_picture_key(red, "vae") != encoded_picture_key(red.resize((4, 16)), "vae")
    assert prompt_key("a", ["b"], "t5") != prompt_key("ab", [], "t5")


def test_only_the_variants_that_dropout_can_choose_are_encoded(tmp_path: Path) -> None:
    sample = open_dataset(dataset_folder(tmp_path))[0]
    plan = EncodePlan(
        image_encoding="vae", prompt_encoding="processor", prompt_sees_images=True, dropped_caption="<cfg>"
    )
    plain = encoding(tmp_path, plan)
    assert set(plain.sample(sample).prompts) == {"full"}
    dropping = encoding(tmp_path, plan, objective=ObjectiveConfig(caption_dropout=0.1, condition_dropout=0.1))
    assert set(dropping.sample(sample).prompts) == {"full", "no_caption", "no_condition"}
    assert dropping.encode_prompt.prompts == [("<cfg>", 2), ("<cfg>", 0)]


def test_picture_tags_are_for_the_processor_that_reads_them(tmp_path: Path) -> None:
    sample = dataclasses.replace(
        open_dataset(dataset_folder(tmp_path))[0], tagged_instruction="<img><|image_1|></img> do 0"
    )
    for words, expected in (("processor", sample.tagged_instruction), ("clip", "do 0"), ("vlm", "do 0")):
        plan = EncodePlan(image_encoding="vae", prompt_encoding=words, size_multiple=16)
        work = encoding(tmp_path / words, plan)
        work.sample(sample)
        assert [prompt for prompt, _ in work.encode_prompt.prompts] == [expected]


def test_dropout_rates_are_met() -> None:
    config = ObjectiveConfig(caption_dropout=0.2, reference_dropout=0.1, condition_dropout=0.3)
    drawn = [drawn_variant(config, slot_generator(0, 0, slot, "dropout")) for slot in range(2000)]
    for variant, rate in (("no_caption", 0.2), ("no_references", 0.1), ("no_condition", 0.3), ("full", 0.4)):
        assert drawn.count(variant) / 2000 == pytest.approx(rate, abs=0.04)


def test_a_task_without_samples_says_what_there_is(tmp_path: Path) -> None:
    work = encoding(tmp_path, task="generate")
    with pytest.raises(ValueError, match="no samples for task 'generate'; it has edit/add"):
        encode_dataset(work, open_dataset(dataset_folder(tmp_path)), tmp_path / "m", lambda done, total: None)


def test_looking_for_the_samples_of_a_task_can_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, calls = open_dataset(dataset_folder(tmp_path)), []
    monkeypatch.setattr(encode, "RECORDS_BETWEEN", 2)
    assert encode.chosen_indices(dataset, "edit", lambda: calls.append(1)) == [0, 1, 2, 3]
    assert len(calls) == 2

    def cancel() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode.chosen_indices(dataset, "edit", cancel)


def test_held_out_never_shares_a_target_with_training(tmp_path: Path) -> None:
    work = encoding(tmp_path)
    entries = [work.sample(sample) for sample in open_dataset(dataset_folder(tmp_path, 12))] * 2
    training, held_out = split_held_out(entries, ValidationConfig(fraction=0.25, smallest_split=4))
    assert 4 <= len(held_out) <= 6
    assert sorted(training + held_out) == list(range(24))
    assert not {entries[i].target for i in training} & {entries[i].target for i in held_out}
    assert split_held_out(entries[:8], ValidationConfig(fraction=0.25))[1] == []


def test_an_epoch_sees_every_sample_once_and_like_shapes_together() -> None:
    shapes = ["wide"] * 6 + ["tall"] * 4
    order = StepOrder(shapes, seed=1, stage=0, batch_size=2, per_step=2)
    steps = [order.batch(step) for step in range(10)]
    for epoch in (steps[:5], steps[5:]):
        assert sorted(index for step in epoch for index in step) == list(range(10))
    assert all(shapes[a] == shapes[b] for a, b in steps)
    assert StepOrder(shapes, seed=1, stage=0, batch_size=2, per_step=2).batch(7) == steps[7]
    others = [StepOrder(shapes, seed=n, stage=0, batch_size=2, per_step=2).batch(0) for n in range(8)]
    assert len(set(map(tuple, others))) > 1


def test_a_lost_or_damaged_cache_entry_says_what_to_do(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    with pytest.raises(FileNotFoundError, match="queue the training again"):
        cache.read("ab")
    cache.write("ab", {"latent": torch.zeros(2)})
    cache.path("ab").write_bytes(b"12345678901234")
    with pytest.raises(ValueError, match="was damaged and is removed"):
        cache.read("ab")
    assert "ab" not in cache
    cache.path("ab").write_bytes(b"1234")
    with pytest.raises(ValueError, match="was damaged and is removed"):
        cache.shape("ab")
    assert "ab" not in cache


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="only Linux tells a process's maps")
def test_what_was_read_holds_no_file_open(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    cache.write("abc", {"latent": torch.arange(6.0).reshape(2, 3)})
    kept = cache.read("abc")["latent"]
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(), "a process may map some 65,000 files"
    cache.path("abc").write_bytes(b"")
    assert kept.tolist() == [[0, 1, 2], [3, 4, 5]]
    kept += 1


def test_a_mask_is_the_share_of_each_place() -> None:
    image = Image.new("L", (16, 8), 0)
    image.paste(255, (0, 0, 4, 8))
    assert mask_of(image).tolist() == [[[0.501960813999176, 0.0]]] or mask_of(image)[
        0, 0, 0
    ] == pytest.approx(0.5, abs=0.01)

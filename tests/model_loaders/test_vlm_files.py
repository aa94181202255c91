"""VLM folders that cannot be used are named with what they lack, before anything large is read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from pack.model_loaders.vlm_files import folder_identity, open_vlm_folder, weight_files

pytestmark = pytest.mark.host


@pytest.fixture
def folder(vlm_folder, tmp_path: Path) -> Path:
    copy = tmp_path / "vlm"
    shutil.copytree(vlm_folder("qwen2_5_vl"), copy, copy_function=os.link)
    return copy


def rewrite_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({**content, **changes}))


def test_a_whole_folder_is_opened(folder: Path) -> None:
    assert open_vlm_folder(folder).class_names == (
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLProcessor",
    )


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        (["vocab.json"], r"tokenizer \(tokenizer.json or vocab.json \+ merges.txt\)"),
        (["tokenizer_config.json"], r"tokenizer settings \(tokenizer_config.json\)"),
        (["preprocessor_config.json"], r"picture processor \(preprocessor_config.json or processor_config"),
        (["model.safetensors"], r"weights model.safetensors"),
        (["config.json"], "has no config.json"),
        (["merges.txt", "model.safetensors"], r"missing: tokenizer .*; weights model.safetensors"),
    ],
)
def test_missing_files_are_named_all_at_once(folder: Path, gone: list[str], named: str) -> None:
    for name in gone:
        (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=named):
        open_vlm_folder(folder)


def test_a_taught_translator_tells_the_size_of_the_pictures_it_knows(folder: Path) -> None:
    def side_of(stages: list[int], references: int = 0, family: str = "vlm") -> int:
        recipe = {
            "stages": [{"resolution": side} for side in stages],
            "reference_resolution": references,
        }
        facts = {"dreamomni.family": family, "dreamomni.recipe": json.dumps(recipe)}
        (folder / "dreamomni.json").write_text(json.dumps(facts))
        return open_vlm_folder(folder).picture_side

    assert open_vlm_folder(folder).picture_side == 1024
    assert (side_of([512]), side_of([64, 128]), side_of([768], 256), side_of([256], 512)) == (
        512,
        128,
        256,
        256,
    )
    assert side_of([512], family="dreamomni") == 1024
    for damaged in ("{", "[]", '{"dreamomni.family": "vlm"}'):
        (folder / "dreamomni.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"dreamomni.json does not tell at which size .* or remove it"):
            open_vlm_folder(folder)


def test_a_model_one_level_deeper_is_found_by_the_message(folder: Path) -> None:
    repository = folder.parent / "DreamOmni2"
    repository.mkdir()
    folder.rename(repository / "vlm-model")
    (repository / "edit_lora").mkdir()
    message = (
        r"DreamOmni2 has no config\.json; it lies in vlm-model: move its files up, "
        r"or move that folder to models/vlm\.$"
    )
    with pytest.raises(FileNotFoundError, match=message):
        open_vlm_folder(repository)
    assert open_vlm_folder(repository / "vlm-model").family == "qwen2_5_vl"


def test_pickles_that_transformers_would_read_are_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.bin").touch()
    with pytest.raises(ValueError, match=r"a pickled adapter may run code .* move the adapter's files away"):
        open_vlm_folder(folder)
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").rename(folder / "model.bin")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model.bin"}}))
    with pytest.raises(ValueError, match=r"index\.json names model\.bin, which may run code"):
        open_vlm_folder(folder)


def test_a_missing_shard_is_named_and_pickles_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"weights model-00002-of-00002.safetensors \(pickled .bin"):
        open_vlm_folder(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_named(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json is no readable index of shards .*download it again"):
        open_vlm_folder(folder)


def test_an_index_cannot_point_out_of_the_folder(folder: Path) -> None:
    index = {"weight_map": {"a": "../../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weight_files(folder) == [folder / "elsewhere.safetensors"]


def test_a_folder_without_a_chat_template_is_refused(folder: Path) -> None:
    (folder / "chat_template.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(FileNotFoundError, match="chat template"):
        open_vlm_folder(folder)


def test_another_family_is_refused(folder: Path) -> None:
    rewrite_json(folder / "config.json", model_type="llava")
    with pytest.raises(
        ValueError, match=r"a model of the type 'llava'; this node reads Qwen2-VL and Qwen2\.5-VL"
    ):
        open_vlm_folder(folder)


def test_an_already_quantised_model_is_refused(folder: Path) -> None:
    rewrite_json(folder / "config.json", quantization_config={"quant_method": "awq"})
    with pytest.raises(ValueError, match=r"already quantised \(awq\).*original bf16"):
        open_vlm_folder(folder)


def test_a_cut_off_download_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match="not a safetensors file, or its download was cut off"):
        open_vlm_folder(folder)


def test_a_file_without_its_end_is_refused(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(ValueError, match="its download was cut off; download it again"):
        open_vlm_folder(folder)


def test_weights_that_are_not_in_the_files_are_never_made_up(folder: Path) -> None:
    from pack.model_loaders.vlm import load_vlm
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    del weights[gone]
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensors the model needs \(.*up_proj"):
        load_vlm(folder, "fp32").generate_text("hello", [], 1)


def test_broken_json_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        open_vlm_folder(folder)


def test_the_identity_follows_the_files(folder: Path) -> None:
    weights = weight_files(folder)
    first = folder_identity(folder, weights)
    assert folder_identity(folder, weights) == first
    rewrite_json(folder / "tokenizer_config.json", note="changed")
    second = folder_identity(folder, weights)
    os.utime(weights[0], ns=(1, 1))
    assert len({first, second, folder_identity(folder, weights)}) == 3

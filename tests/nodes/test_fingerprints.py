"""Files that change under the same name are read again, as after a training run that goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pack.dit.dreamomni.storage import FORMAT

pytestmark = pytest.mark.host

WEIGHTS, NAME = "weights.safetensors", "mine"
FOLDER_NODES = {
    "LoadDreamOmni": ("model_name", "dreamomni"),
    "LoadVAE": ("vae_name", "dreamomni_vae"),
    "LoadVLM": ("vlm_name", "vlm"),
    "LoadOmniGen": ("model_name", "omnigen"),
}
LORA_NODES = {"TaskLoRA": ("edit_lora", "generate_lora"), "OmniGenLoRA": ("lora_name",)}


def write(file: Path, size: int = 3, time: int = 10**18) -> None:
    """A file of a size in bytes, last written at a time in nanoseconds."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"0" * size)
    os.utime(file, ns=(time, time))


def fingerprint(node: str, **inputs: object) -> str:
    """What the node's class says of its inputs before it runs."""
    from pack import nodes

    (found,) = [kind for kind in nodes.NODES if kind.__name__ == node]
    return found.fingerprint_inputs(**inputs)


def check_changes(state: Callable[[], str], file: Path) -> None:
    """The state follows size and time of a file and nothing else."""
    write(file)
    first = state()
    assert state() == first
    write(file, size=4)
    assert state() != first
    write(file, time=10**18 + 10**9)
    assert state() != first
    write(file)
    assert state() == first


@pytest.mark.parametrize("part", [WEIGHTS, f"vlm/{WEIGHTS}", "config.json"])
@pytest.mark.parametrize("node", FOLDER_NODES)
def test_a_model_folder_that_changed(models_dir: Path, node: str, part: str) -> None:
    name, kind = FOLDER_NODES[node]
    write(models_dir / kind / NAME / "model.safetensors")
    check_changes(
        lambda: fingerprint(node, **{name: NAME, "weight_dtype": "default"}), models_dir / kind / NAME / part
    )


@pytest.mark.parametrize("part", ["vlm/shared/config.json", "vae/ae.safetensors"])
def test_a_part_that_a_dreamomni_folder_shares_changed(models_dir: Path, part: str) -> None:
    folder = models_dir / "dreamomni" / NAME
    write(folder / WEIGHTS)
    index = {"format": FORMAT, "network": {}, "vlm": "shared", "vae": "ae.safetensors"}
    (folder / "config.json").write_text(json.dumps(index))
    for name in ("vlm/shared/config.json", "vae/ae.safetensors"):
        write(models_dir / name)
    check_changes(lambda: fingerprint("LoadDreamOmni", model_name=NAME), models_dir / part)


@pytest.mark.parametrize(("node", "name"), [(n, name) for n, names in LORA_NODES.items() for name in names])
def test_a_lora_that_changed(models_dir: Path, node: str, name: str) -> None:
    def state() -> str:
        chosen = dict.fromkeys(LORA_NODES[node], "none") | {name: "run/adapter_model.safetensors"}
        return fingerprint(node, model=None, references=None, strength=1.0, **chosen)

    write(models_dir / "loras" / "run" / "adapter_model.safetensors")
    check_changes(state, models_dir / "loras" / "run" / "adapter_model.safetensors")
    check_changes(state, models_dir / "loras" / "run" / "adapter_config.json")


@pytest.mark.parametrize("chosen", [None, "", "gone", "../gone"])
def test_what_is_linked_or_missing_has_a_state_too(models_dir: Path, chosen: str | None) -> None:
    for node, (name, _) in FOLDER_NODES.items():
        assert fingerprint(node, **{name: chosen}) == ""
    for node, names in LORA_NODES.items():
        assert fingerprint(node, model=None, **dict.fromkeys(names, chosen)) == ""
    assert fingerprint("LoadDataset", name=chosen) == ""


def test_a_broken_link_in_a_folder_is_left_out(models_dir: Path) -> None:
    from pack.nodes.fingerprints import folder_state

    write(models_dir / "vlm" / NAME / WEIGHTS)
    before = folder_state(models_dir / "vlm" / NAME)
    (models_dir / "vlm" / NAME / "z").symlink_to(models_dir / "gone")
    assert folder_state(models_dir / "vlm" / NAME) == before
    assert folder_state(models_dir / "gone") == folder_state(models_dir / "neither")


def test_a_model_file_that_changed(models_dir: Path) -> None:
    name = "kontext.safetensors"
    write(models_dir / "diffusion_models" / name)
    check_changes(
        lambda: fingerprint("LoadKontext", unet_name=name, weight_dtype="default"),
        models_dir / "diffusion_models" / name,
    )
    assert fingerprint("LoadKontext", unet_name=None) == fingerprint("LoadKontext", unet_name="../x") == ""


def test_the_lock_of_a_dataset_is_no_part_of_it(output_dir: Path) -> None:
    from pack.training.synthesis.generate import dataset_lock

    folder = output_dir / "dreamomni" / "datasets" / "mine"
    write(folder / "samples.jsonl")
    before = fingerprint("LoadDataset", name="mine")
    with dataset_lock(folder):
        assert fingerprint("LoadDataset", name="mine") == before
    assert fingerprint("LoadDataset", name="mine") == before


def test_a_picture_deep_in_a_dataset_that_changed(output_dir: Path) -> None:
    folder = output_dir / "dreamomni" / "datasets" / "mine"
    write(folder / "samples.jsonl")
    check_changes(
        lambda: fingerprint("LoadDataset", name="mine"), folder / "pictures" / "000000" / "1.target.png"
    )


@pytest.mark.parametrize("inputs", ["stickers_folder", "backgrounds_folder"])
def test_stickers_and_backgrounds_that_changed(
    output_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: str
) -> None:
    import folder_paths

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    write(tmp_path / "input" / "pictures" / "first.png")
    for name in ("mine", None):
        check_changes(
            lambda name=name: fingerprint("StickerDataset", name=name, **{inputs: "pictures"}),
            tmp_path / "input" / "pictures" / "animals" / "cat.png",
        )
    for folder in ("gone", "../gone", None):
        assert fingerprint("StickerDataset", name="mine", **{inputs: folder}) == fingerprint(
            "StickerDataset", name="mine"
        )


@pytest.mark.parametrize("asked", [200, None], ids=["written", "linked"])
def test_a_dataset_as_the_node_left_it_is_not_made_again(output_dir: Path, asked: int | None) -> None:
    """A linked count is None until the node runs, and a number when it writes."""
    from pack.nodes.own_writes import OWN_WRITES

    folder = output_dir / "dreamomni" / "datasets" / "mine"

    def state() -> str:
        return fingerprint("StickerDataset", name="mine", count=asked)

    before = state()
    write(folder / "samples.jsonl")
    OWN_WRITES.wrote(folder, 200)
    assert state() == before
    (folder / "samples.jsonl").unlink()
    assert state() != before


RESULTS = {
    "TrainLoRA": "loras/dreamomni/mine.safetensors",
    "TrainDreamOmni": "dreamomni/mine/dit.safetensors",
    "TrainVLM": "vlm/mine/model.safetensors",
    "TrainVAE": "dreamomni_vae/mine/vae.safetensors",
}


@pytest.mark.parametrize("node", RESULTS)
def test_a_training_result_that_is_gone_is_made_again(models_dir: Path, node: str) -> None:
    from pack.nodes.own_writes import OWN_WRITES
    from pack.nodes.training_results import published_folder

    def state(**inputs: str | None) -> str:
        return fingerprint(node, **{"run_name": "mine", "resume": "continue if it exists"} | inputs)

    kind, name, *_ = Path(RESULTS[node]).parts
    result = models_dir / RESULTS[node]
    before = state()
    write(result)
    OWN_WRITES.wrote(published_folder(kind, "dreamomni/mine.safetensors" if kind == "loras" else name))
    assert state() == before == state(run_name="other", resume="mine")
    if node == "TrainLoRA":
        assert state(run_name="other", resume="mine-translator", preset="joint") == before
    result.unlink()
    gone = state()
    if node == "TrainLoRA":
        assert state(run_name="other", resume="mine-translator", preset="joint") == gone
        assert state(run_name="other", resume="mine-translator", preset="hobby") != gone
    assert gone != before and gone == state()
    assert state(run_name=None) == state(run_name="../mine") != gone


def test_training_follows_the_files_of_its_base(models_dir: Path) -> None:
    for base, file in {
        ("kontext.safetensors", "kontext"): "diffusion_models/kontext.safetensors",
        ("omnigen/mine", "omnigen"): "omnigen/mine/model.safetensors",
        ("dreamomni/mine", "dreamomni"): "dreamomni/mine/dit.safetensors",
    }.items():
        write(models_dir / file)
        check_changes(
            lambda base=base: fingerprint("TrainLoRA", base=base[0], family=base[1], run_name="mine"),
            models_dir / file,
        )
    write(models_dir / "dreamomni_vae" / "start" / WEIGHTS)
    check_changes(
        lambda: fingerprint("TrainVAE", start="start", run_name="mine"),
        models_dir / "dreamomni_vae" / "start" / WEIGHTS,
    )


@pytest.mark.parametrize("file", ["metrics.jsonl", "samples/step-000000002-0.png"])
def test_a_run_that_went_on(output_dir: Path, file: str) -> None:
    folder = output_dir / "dreamomni" / "training" / "mine"
    write(folder / "metrics.jsonl")
    check_changes(lambda: fingerprint("TrainingReport", run=None, run_name="mine"), folder / file)
    for name in (None, "the connected run", "gone", "../mine"):
        assert fingerprint("TrainingReport", run=None, run_name=name) == ""

"""Folders that a run puts into ComfyUI's models again: its own files are new, those of users stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.host


def files_of(folder: Path) -> dict[str, str]:
    """Path below the folder -> text, of every file."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_network_is_replaced_and_what_users_put_beside_it_stays(models_dir: Path, output_dir: Path) -> None:
    """As Train DreamOmni's page tells them to: a VAE in vae/, or its name in config.json."""
    from pack.nodes.training_folders import TrainingRun, runs_root
    from pack.nodes.training_results import publish_network

    run, published = TrainingRun(runs_root() / "mine"), models_dir / "dreamomni" / "mine"
    export = run.folder / "exports" / "last"
    index = {"format": "dreamomni-1", "network": {}, "vlm": "vlm", "vae": "vae"}

    def publish(weights: str, **parts: str) -> dict[str, str]:
        texts = {"config.json": json.dumps(index), "dit.safetensors": weights, "vlm/config.json": "{}"}
        for name, text in (texts | parts).items():
            (export / name).parent.mkdir(parents=True, exist_ok=True)
            (export / name).write_text(text)
        assert publish_network(run) == "mine"
        return files_of(published)

    assert publish("1") == files_of(export)
    own = {"vae/ae.safetensors": "vae", "loras/edit.safetensors": "lora", "notes.txt": "notes"}
    own |= {"vlm/notes.txt": "notes", "vlm/templates/chat.jinja": "mine"}  # in a folder that every run brings
    for name, text in own.items():
        (published / name).parent.mkdir(exist_ok=True)
        (published / name).write_text(text)
    assert publish("2") == files_of(export) | own
    (published / "config.json").write_text(json.dumps(index | {"vae": "ae.safetensors"}))
    found = publish("3")
    assert json.loads(found.pop("config.json")) == index | {"vae": "ae.safetensors"}
    assert found == {"dit.safetensors": "3", "vlm/config.json": "{}"} | own
    (published / "config.json").write_text("{")
    assert publish("4") == files_of(export) | own
    (published / "config.json").write_text(json.dumps(index | {"vae": "ae.safetensors"}))
    found = publish("5", **{"vae/vae.safetensors": "small"})
    assert json.loads(found["config.json"]) == index, "the network's own VAE came with it"
    assert found["vae/vae.safetensors"] == "small"
    assert own.items() <= found.items()
    publish("6", **{"vlm/model-1.safetensors": "first"})
    (export / "vlm" / "model-1.safetensors").unlink()
    found = publish("7", **{"vlm/model.safetensors": "all"})
    assert "vlm/model-1.safetensors" not in found and found["vlm/notes.txt"] == "notes"


def test_a_record_of_names_at_the_top_alone_is_read(models_dir: Path, output_dir: Path) -> None:
    """A folder in it is the run's as a whole, once: what is put there afterwards stays."""
    from pack.nodes.training_results import publish_network
    from pack.nodes.training_run import TrainingRun, runs_root

    run, published = TrainingRun(runs_root() / "mine"), models_dir / "dreamomni" / "mine"
    for folder in (run.folder / "exports" / "last", published):
        (folder / "vlm").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"vlm": "vlm", "vae": "vae"}))
    (run.folder / "exports" / "last" / "vlm" / "model.safetensors").write_text("new")
    (published / "vlm" / "model-1.safetensors").write_text("old")
    (run.folder / "published.json").write_text(json.dumps(["config.json", "vlm"]))
    for _ in range(2):
        publish_network(run)
        found = sorted(path.name for path in (published / "vlm").iterdir())
        assert [name for name in found if name != "notes.txt"] == ["model.safetensors"]
        (published / "vlm" / "notes.txt").write_text("mine")
    assert "notes.txt" in found
    assert [entry.name for entry in published.parent.iterdir()] == ["mine"]


def test_a_small_vae_and_a_taught_vlm_keep_what_users_put_beside_them(
    models_dir: Path, output_dir: Path, tmp_path: Path
) -> None:
    """Weights that are cut into other files than before leave nothing of the older ones to be read."""
    from pack.nodes.training_folders import TrainingRun, runs_root
    from pack.nodes.training_results import publish_export
    from pack.nodes.training_translator import publish_vlm

    for key in ("vlm", "dreamomni_vae"):
        run, published = TrainingRun(runs_root() / key), models_dir / key / key
        export = run.folder / "exports" / "last"

        def publish(*names: str, run: TrainingRun = run, export: Path = export, key: str = key) -> None:
            for path in export.glob("*"):
                path.unlink()
            export.mkdir(parents=True, exist_ok=True)
            for name in names:
                (export / name).write_text("ours")
            assert (publish_vlm(run, tmp_path) if key == "vlm" else publish_export(run, key)) == key

        publish("model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json")
        own = {"notes.txt": "mine", "templates/chat.jinja": "mine"}
        for name, text in own.items():
            (published / name).parent.mkdir(exist_ok=True)
            (published / name).write_text(text)
        for _ in range(2):
            publish("model.safetensors", "config.json")
            assert files_of(published) == {"model.safetensors": "ours", "config.json": "ours"} | own
        (published / "config.json").write_text("mine")
        publish("model.safetensors", "config.json")
        assert files_of(published) == {"model.safetensors": "ours", "config.json": "ours"} | own
        assert [entry.name for entry in published.parent.iterdir()] == [key]


def test_a_merged_vlm_keeps_what_users_put_beside_it(
    models_dir: Path, output_dir: Path, tmp_path: Path
) -> None:
    from pack.nodes.training_folders import TrainingRun, runs_root
    from pack.nodes.training_translator import publish_vlm

    name, base, run = "layers.0.self_attn.q_proj", tmp_path / "base", TrainingRun(runs_root() / "mine")
    (run.folder / "exports").mkdir(parents=True)
    base.mkdir()
    save_file({f"model.{name}.weight": torch.zeros(4, 4)}, base / "model.safetensors")
    parts = {"lora_A.weight": torch.ones(1, 4), "lora_B.weight": torch.ones(4, 1), "alpha": torch.tensor(1.0)}
    published = models_dir / "vlm" / "mine"
    for strength in (1, 2):
        parts["alpha"] = torch.tensor(float(strength))
        lora = {f"{name}.{part}": tensor for part, tensor in parts.items()}
        save_file(lora, run.folder / "exports" / "last.safetensors")
        assert publish_vlm(run, base) == "mine"
        merged = load_file(published / "model.safetensors")[f"model.{name}.weight"]
        assert merged.sum() == 16 * strength
        assert (published / "notes.txt").is_file() == (strength == 2)
        (published / "notes.txt").write_text("mine")
    assert [entry.name for entry in published.parent.iterdir()] == ["mine"]


def test_what_a_crash_left_in_an_export_is_not_given_away(models_dir: Path, output_dir: Path) -> None:
    from pack.nodes.training_folders import TrainingRun, runs_root
    from pack.nodes.training_results import publish_export, publish_network

    run = TrainingRun(runs_root() / "mine")
    index = {"format": "dreamomni-1", "network": {}, "vlm": "vlm", "vae": "vae"}
    for name, text in {"config.json": json.dumps(index), ".partial-1": "", "vae/.partial-2": ""}.items():
        path = run.folder / "exports" / "last" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    publish_network(run)
    publish_export(run, "vlm")
    for key in ("dreamomni", "vlm"):
        assert list(files_of(models_dir / key / "mine")) == ["config.json"]


def test_a_lora_that_a_program_holds_says_where_the_new_one_is_kept(
    models_dir: Path, output_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pack.nodes.training_folders import TrainingRun, runs_root
    from pack.nodes.training_results import publish_lora

    run = TrainingRun(runs_root() / "mine")
    (run.folder / "exports").mkdir(parents=True)
    (run.folder / "exports" / "last.safetensors").write_text("new")
    published = models_dir / "loras" / publish_lora(run)

    def refuse(path: Path, target: Path) -> None:
        raise PermissionError("[WinError 5] Access is denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(PermissionError, match=r"mine\.safetensors could not be replaced.*is kept as"):
            publish_lora(run)
    publish_lora(run)
    assert [path.name for path in published.parent.iterdir()] == ["mine.safetensors"]

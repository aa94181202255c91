"""The training nodes inside ComfyUI on the CPU: encode with real nodes' models, train, load the LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.host


class ToyVae:
    """Latents of 16 channels by averaging, and back."""

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(image.movedim(-1, 1), 8)
        return small.mean(1, keepdim=True).expand(-1, 16, -1, -1)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        big = torch.nn.functional.interpolate(latent[:, :3], scale_factor=8)
        return big.movedim(1, -1)


class ToyClip:
    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_from_tokens(self, tokens: list[int], return_pooled: bool) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(sum(tokens))
        return torch.randn(1, 5, 16, generator=generator), torch.randn(1, 8, generator=generator)


def quick_lora() -> dict[str, Any]:
    """Inputs of Train LoRA for two steps on a tiny Kontext."""
    return {
        "family": "kontext",
        "task": "edit",
        "clip": ToyClip(),
        "vae": ToyVae(),
        "steps": 2,
        "resolution": 64,
        "rank": 2,
        "precision": "fp32",
    }


def pairs(folder: Path, count: int = 4) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        for kind, shade in (("source", 40 * number), ("target", 40 * number + 20), ("reference", 255)):
            Image.new("RGB", (64, 64), (shade, shade, shade)).save(folder / f"{kind}{number}.png")
        line = {"task": "add", "instruction": f"do {number}", "id": str(number)}
        line |= {"source": f"source{number}.png", "target": f"target{number}.png"}
        lines.append(json.dumps(line | {"references": [f"reference{number}.png"]}) + "\n")
    (folder / "samples.jsonl").write_text("".join(lines))
    return folder


def test_a_lora_is_trained_published_and_loads_without_unmatched_keys(
    models_dir: Path, output_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pack.training import presets
    from pack.training.config import OutputConfig

    quick = OutputConfig(checkpoint_every=2, sample_every=2, sample_count=1, sample_steps=1)
    monkeypatch.setattr(presets, "output_for", lambda steps: quick)
    from pack.model_loaders.lora_check import bare_kontext, unmatched_keys
    from pack.nodes.training import TrainLoRA
    from pack.nodes.training_report import TrainingReport
    from pack.training.dataset import open_dataset
    from pack.training.metrics import read_metrics
    from safetensors.torch import load_file, save_file

    from tests.training.tiny_flux import saved_flux, tiny_flux

    base = saved_flux(models_dir / "diffusion_models", tiny_flux())
    dataset = open_dataset(pairs(tmp_path / "data"))
    inputs = {
        "base": base.name,
        "dataset": dataset,
        "run_name": "first",
        "preset": "hobby",
        **quick_lora(),
    }
    with torch.inference_mode():
        result = TrainLoRA.execute(**inputs)
        name, run = result.args
        chart, samples, text = TrainingReport.execute(run).args
    lora = models_dir / "loras" / name
    assert lora.is_file()
    assert unmatched_keys(lora, bare_kontext([base])) == []
    assert chart.shape == (1, 540, 960, 3)
    assert samples.shape[1:] == (256, 4 * 256, 3)
    assert "step 2 of 2" in text
    assert "4 samples looked over" in text
    kinds = [event["event"] for event in read_metrics(run.folder)]
    assert kinds.count("step") == 2
    assert kinds[-1] == "finished"

    broken = load_file(lora)
    broken["transformer.no_such_block.lora_A.weight"] = torch.zeros(2, 128)
    save_file(broken, lora)
    assert unmatched_keys(lora, bare_kontext([base])) == ["transformer.no_such_block.lora_A.weight"]

    shutil.rmtree(run.folder)
    before = lora.read_bytes()
    with pytest.raises(ValueError, match=r"first\.safetensors exists and no run of that name made it"):
        TrainLoRA.execute(**inputs)
    assert lora.read_bytes() == before and not run.folder.exists()


def test_run_names_and_resume_choices(output_dir: Path) -> None:
    from pack.nodes.training_folders import CONTINUE, FRESH, chosen_name, resume_choices, runs_root
    from pack.training.checkpoint import RunState, save_checkpoint

    assert chosen_name("new", FRESH) == "new"
    assert resume_choices() == [CONTINUE, FRESH]
    state = RunState(step=7, tensors={"weight.a": torch.zeros(1)}, data={})
    save_checkpoint(runs_root() / "old" / "checkpoints", state)
    assert resume_choices() == [CONTINUE, FRESH, "old"]
    assert chosen_name("ignored", "old") == "old"
    assert chosen_name("old", CONTINUE) == "old"
    with pytest.raises(ValueError, match=r"'old' exists and stands at step 7; choose 'continue if it"):
        chosen_name("old", FRESH)
    with pytest.raises(ValueError, match=r"no run called 'gone' can be continued; there are: old"):
        chosen_name("x", "gone")
    with pytest.raises(ValueError, match="cannot be a folder name"):
        chosen_name("../up", CONTINUE)


def test_bases_and_missing_encoders_are_explained(models_dir: Path) -> None:
    from pack.nodes.training import base_choices, base_path
    from pack.nodes.training_encoders import picture_encoder, prompt_encoder
    from pack.training.config import RunConfig
    from pack.training.families.base import EncodePlan

    (models_dir / "omnigen" / "v1").mkdir(parents=True)
    (models_dir / "omnigen" / "v1" / "config.json").write_text("{}")
    assert "omnigen/v1" in base_choices()
    assert base_path("omnigen/v1", "omnigen").name == "v1"
    with pytest.raises(ValueError, match="is no base for kontext"):
        base_path("omnigen/v1", "kontext")
    with pytest.raises(ValueError, match="is no base for omnigen; choose one that begins with omnigen/"):
        base_path("flux.safetensors", "omnigen")
    plan = EncodePlan(image_encoding="vae", prompt_encoding="clip")
    with pytest.raises(ValueError, match="connect clip"):
        prompt_encoder(plan, None, None, None)
    with pytest.raises(ValueError, match="connect vae"):
        picture_encoder(RunConfig(name="x", family="kontext"), plan, None)


@pytest.mark.parametrize("folder", ["dreamomni", "omnigen"])
def test_a_kontext_file_in_a_folder_called_like_a_family_is_a_base(models_dir: Path, folder: str) -> None:
    from pack.nodes.training import base_choices, base_path

    file = models_dir / "diffusion_models" / folder / "kontext.safetensors"
    file.parent.mkdir()
    file.touch()
    name = str(Path(folder) / file.name)
    assert name in base_choices()
    assert base_path(name, "kontext") == file
    with pytest.raises((ValueError, FileNotFoundError), match=r"is no base for|no model folder"):
        base_path(name, folder)


def test_shards_are_offered_as_one_base(models_dir: Path) -> None:
    from host_models import kontext_weights, write_sharded
    from pack.nodes.training import base_choices, base_path
    from pack.nodes.training_bases import base_hashes, base_parts
    from pack.training.config import RunConfig

    weights = kontext_weights()
    folder = write_sharded(models_dir / "diffusion_models" / "kontext" / "transformer", weights)
    loose = write_sharded(models_dir / "diffusion_models", weights, count=2)
    offered = ["diffusion_pytorch_model", str(Path("kontext") / "transformer")]
    assert base_choices() == offered
    assert base_path(offered[1], "kontext") == folder
    assert base_path(offered[0], "kontext") == loose / "diffusion_pytorch_model-00001-of-00002.safetensors"
    for name, count in zip(offered, (2, 3), strict=True):
        config = RunConfig(name="x", family="kontext", base={"transformer": str(base_path(name, "kontext"))})
        assert len(base_parts(config)["transformer"]) == count
        assert len(base_hashes(config)["transformer"]) == 64
    encoders = {"vlm": str(folder), "vae": str(loose / "diffusion_pytorch_model-00001-of-00002.safetensors")}
    hashes = base_hashes(RunConfig(name="x", family="dreamomni", base=encoders))
    assert set(hashes) == {"vlm", "vae"}, "a run must not go on with other encoders"
    min(folder.glob("*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match="has 2 of 3 shards, missing: 1"):
        base_path(offered[1], "kontext")


def test_a_large_base_on_the_cpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pack.nodes import training_checks
    from pack.training.config import RunConfig

    base = tmp_path / "large.safetensors"
    base.write_bytes(b"x" * 100)
    monkeypatch.setattr(training_checks, "LARGEST_ON_CPU", 50)
    with pytest.raises(ValueError, match="ComfyUI runs on the CPU"):
        training_checks.require_device(RunConfig(name="x", family="kontext", base={"transformer": str(base)}))


def test_encoder_identities_follow_what_the_models_answer() -> None:
    from pack.nodes.training_encoders import ClipPrompts, VaePictures

    import comfy.latent_formats

    class LouderVae(ToyVae):
        def encode(self, image: torch.Tensor) -> torch.Tensor:
            return super().encode(image) * 1.01

    flux = comfy.latent_formats.Flux()
    assert VaePictures(ToyVae(), flux).identity == VaePictures(ToyVae(), flux).identity
    assert VaePictures(ToyVae(), flux).identity != VaePictures(LouderVae(), flux).identity
    encoded = ClipPrompts(ToyClip())("hello", [])
    assert encoded["context"].shape == (5, 16)
    assert encoded["pooled"].shape == (8,)
    latent = VaePictures(ToyVae(), flux)(Image.new("RGB", (32, 16), "white"))
    torch.testing.assert_close(latent, torch.full((16, 2, 4), (1.0 - 0.1159) * 0.3611))


def test_encoders_of_another_model_are_refused_before_any_work() -> None:
    from pack.nodes.training_encoders import ClipPrompts, VaePictures

    import comfy.latent_formats

    with pytest.raises(ValueError, match=r"shape \(1, 16, 8, 8\); this network works on 4 channels"):
        VaePictures(ToyVae(), comfy.latent_formats.SDXL())

    class WithoutPooled(ToyClip):
        def encode_from_tokens(self, tokens: list[int], return_pooled: bool) -> tuple[torch.Tensor, None]:
            return super().encode_from_tokens(tokens, return_pooled)[0], None

    with pytest.raises(ValueError, match=r"no pooled encoding.*use DualCLIPLoader"):
        ClipPrompts(WithoutPooled())


def test_a_preview_that_cannot_be_drawn_or_saved_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from pack.nodes.training_encoders import PixelPictures
    from pack.nodes.training_previews import decode_samples
    from safetensors.torch import save_file

    class FullCard(PixelPictures):
        def decode(self, latent: torch.Tensor) -> Image.Image:
            raise RuntimeError("CUDA error: out of memory")

    file = tmp_path / "samples" / "step-000000000-0.safetensors"
    file.parent.mkdir()
    save_file({"sample": torch.zeros(3, 8, 8), "target": torch.zeros(3, 8, 8)}, file)
    assert decode_samples(tmp_path, FullCard(), 0) is None
    assert "no preview of step 0: CUDA error: out of memory" in caplog.text
    assert decode_samples(tmp_path, PixelPictures(), 0) is not None
    file.with_suffix(".png").unlink()
    file.with_suffix(".png").mkdir()
    assert decode_samples(tmp_path, PixelPictures(), 0) is None

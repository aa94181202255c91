"""The small VAE from the graph: trained, continued, opened as ComfyUI's VAE, and handed to a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.host

SIDE = 32


@pytest.fixture
def dataset(tmp_path: Path) -> Any:
    """Eight smooth pictures."""
    from pack.training.dataset import open_dataset

    folder, lines = tmp_path / "data", []
    folder.mkdir()
    for number in range(8):
        coarse = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(number))
        picture = Image.fromarray((coarse * 255).to(torch.uint8).numpy())
        picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(folder / f"{number}.png")
        line = {"task": "text", "instruction": f"picture {number}", "id": str(number), "source": None}
        lines.append(json.dumps(line | {"references": [], "target": f"{number}.png"}) + "\n")
    (folder / "samples.jsonl").write_text("".join(lines))
    return open_dataset(folder)


def train(dataset: Any, **changes: object) -> tuple[str, Any, Any]:
    from pack.nodes.small_vae import TrainVAE

    settings: dict[str, Any] = {
        "run_name": "small",
        "downscale": "4",
        "latent_channels": 4,
        "width": 8,
        "steps": 30,
        "learning_rate": 3e-3,
        "batch_size": 4,
        "resolution": SIDE,
    }
    with torch.inference_mode():
        return TrainVAE.execute(dataset=dataset, **(settings | changes)).args


@pytest.mark.timeout(1500)
def test_a_vae_is_trained_continued_and_opened(
    models_dir: Path,
    output_dir: Path,
    dataset: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pack.model_loaders.dreamomni_model import latent_format
    from pack.nodes.small_vae import LoadVAE, small_vae_base
    from pack.nodes.training_encoders import VaePictures
    from pack.nodes.training_report import TrainingReport
    from pack.training import presets
    from pack.training.config import OutputConfig
    from pack.training.families.dreamomni_setup import network_config, read_latent
    from pack.training.metrics import read_metrics
    from safetensors.torch import load_file

    quick = OutputConfig(checkpoint_every=10, sample_every=30, sample_count=1)
    monkeypatch.setattr(presets, "output_for", lambda steps: quick)
    name, run, vae = train(dataset)
    losses = [event["loss"] for event in read_metrics(run.folder) if event["event"] == "step"]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    assert TrainingReport.execute(run).args[1].shape == (2, 256, 2 * 256, 3)

    folder = models_dir / "dreamomni_vae" / name
    weights, latent = load_file(folder / "vae.safetensors"), read_latent(folder)
    target = torch.stack([image_of(dataset[index].target) for index in range(8)])
    with torch.inference_mode():
        loaded = LoadVAE.execute(vae_name=name).args[0]
        assert loaded.encode(target).shape == (8, 4, SIDE // 4, SIDE // 4)
        torch.testing.assert_close(loaded.encode(target), vae.encode(target), rtol=0, atol=0)
        error = (loaded.decode(loaded.encode(target)) - target).square().mean()
        assert error < 0.5 * target.var()
        seen = VaePictures(loaded, latent_format(latent))(dataset[0].target)
        plain = loaded.encode(target[:1])[0]
        torch.testing.assert_close(seen, (plain - latent.shift) * latent.scale, rtol=1e-5, atol=1e-5)

    # A network trained with it is fitted to its latents.
    config = presets.dreamomni_run(
        name="x",
        base=small_vae_base(loaded),
        options={"preset": "tiny"},
        stages=presets.parse_stages("32 2 1e-3 1"),
        seed=0,
    )
    assert network_config(config).latent == latent
    assert small_vae_base(object()) == {}

    # Queued again with more steps it goes on.
    train(dataset, steps=40)
    assert [event["step"] for event in read_metrics(run.folder) if event["event"] == "step"] == [
        *range(1, 41)
    ]
    assert not torch.equal(
        load_file(folder / "vae.safetensors")["encoder.0.weight"], weights["encoder.0.weight"]
    )


def image_of(picture: Image.Image) -> torch.Tensor:
    from pack.nodes.pictures import image_of

    return image_of(picture)[0]


def test_names_and_folders_that_cannot_be_used_are_explained(
    models_dir: Path,
    output_dir: Path,
    dataset: Any,
) -> None:
    from pack.nodes.small_vae import LoadVAE

    (models_dir / "dreamomni_vae" / "small").mkdir()
    with pytest.raises(ValueError, match="dreamomni_vae/small exists and no run of that name made it"):
        train(dataset)
    with pytest.raises(FileNotFoundError, match=r"has no latent\.json, so it is no small VAE"):
        LoadVAE.execute(vae_name="small")
    with pytest.raises(FileNotFoundError, match="no model folder 'gone'"):
        train(dataset, start="gone", run_name="other")

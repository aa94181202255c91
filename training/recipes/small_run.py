"""Carries the small recipe out in a folder: what is finished there already is not done again."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from ...dit.whole_files import copy_finished
from ..cache import TensorCache
from ..config import RunConfig
from ..config_json import to_json
from ..dataset import open_dataset
from ..encode import Encoding, encode_dataset, pixels_of
from ..events import Event, Heard
from ..families import load_family
from ..families.dreamomni_vlm import TrainedPair
from ..files import file_sha256, whole_folder, write_json, write_tensors
from ..launch import TrainingError, log_tail, run_once
from ..run_file import RunFile
from ..synthesis.generate import Job, generate
from ..trainer import EXPORTS, RunFolder
from .loading import load_trained, plain_sample
from .small import RECIPE, SmallRecipe
from .small_tasks import LORA_TASKS
from .small_vlm import ensure_small_vlm

log = logging.getLogger("dreamomni")

LARGEST_BYTES = 12 * 10**6
"""All files of the small model together."""
LORAS = "loras"
DONE = "done.json"
"""In the folder of a finished run: what it was made of."""
TOLD_EVERY = 50
Train = Callable[[RunFile, Path, Heard], int]


class PixelEncoder:
    """Pictures as RGB in -1..1."""

    identity = "pixels"

    def __call__(self, image: Image.Image) -> Tensor:
        return pixels_of(image)


class PairEncoder:
    """Words and pictures as the finished model's own VLM reads them."""

    def __init__(self, model: Path) -> None:
        self.identity = file_sha256(model / "vlm" / "model.safetensors")
        self.pair: TrainedPair = load_trained(model)

    @torch.inference_mode()
    def __call__(self, prompt: str, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        sample = plain_sample(prompt, [pixels_of(image) for image in images])
        features = self.pair.features([sample], torch.device("cpu"))
        return {
            "tokens": features.tokens[0].clone(),
            "attention_mask": features.attention_mask[0].clone(),
            "image_index": features.image_index[0].clone(),
        }


class Teller:
    """Logs the loss and the speed of a run now and then."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.began, self.first = config, time.monotonic(), -1
        self.is_cancelled = False

    def __call__(self, event: Event | None) -> None:
        """Hear one event of the training process."""
        if event is None:
            return
        self.is_cancelled = self.is_cancelled or event["event"] == "cancelled"
        if event["event"] in ("error", "validation", "rewound", "save_failed", "note", "finished"):
            log.info("%s: %s", self.config.name, json.dumps(event))
        if event["event"] != "step":
            return
        if self.first < 0:
            self.began, self.first = time.monotonic(), event["step"]
        if event["step"] % TOLD_EVERY == 0 and event["step"] > self.first:
            rate = (event["step"] - self.first) / (time.monotonic() - self.began)
            left = (self.config.total_steps - event["step"]) / rate / 3600
            log.info(
                "%s: step %d of %d, loss %.4f, %.1f samples/s, %.2f h to go",
                self.config.name,
                event["step"],
                self.config.total_steps,
                event["smoothed"] if event["smoothed"] is not None else event["loss"],
                rate * self.config.stages[0].global_batch,
                left,
            )


def made_of(config: RunConfig, folder: Path, base_hashes: dict[str, str]) -> dict[str, Any]:
    """What a run's weights depend on: its settings, its base and its samples."""
    place, side = RunFolder(folder=folder, cache=folder / "cache"), config.stages[0].resolution
    samples = [path for path in (place.recipe(side), place.manifest(side)) if path.is_file()]
    hashes = [file_sha256(path) for path in samples]
    return {"config": to_json(config), "base_hashes": base_hashes, "samples": hashes}


def train_run(
    config: RunConfig, folder: Path, base_hashes: dict[str, str], device: str, train: Train
) -> Path:
    """Train (or go on with) a run in `folder`; its exports. Raises TrainingError with the last words.

    A finished run is left as it is: safetensors orders a file's metadata by chance, so weights written again
    have another hash, and all that was trained on them would begin anew.
    """
    exports, done, inputs = folder / EXPORTS, folder / DONE, made_of(config, folder, base_hashes)
    if exports.is_dir() and done.is_file() and json.loads(done.read_text(encoding="utf-8")) == inputs:
        return exports
    run = RunFile(config=config, cache=str(folder / "cache"), device=device, base_hashes=base_hashes)
    teller = Teller(config)
    code = train(run, folder, teller)
    if code != 0:
        raise TrainingError(f"{config.name} ended with code {code}.\n{log_tail(folder)}")
    if teller.is_cancelled:
        raise TrainingError(f"{config.name} was stopped; the same command goes on from its checkpoint")
    write_json(done, inputs)
    return exports


def train_base(recipe: SmallRecipe, work: Path, device: str, train: Train) -> Path:
    """The network and its VLM; the folder of the finished model."""
    vlm = ensure_small_vlm(work / "vlm", recipe.vlm, recipe.seed)
    place = RunFolder(folder=work / "base", cache=work / "base" / "cache")
    recipe.base_samples().write(place.recipe(recipe.side))
    hashes = {"vlm": file_sha256(vlm / "model.safetensors")}
    return train_run(recipe.base_run(vlm), place.folder, hashes, device, train) / "last"


def refine(recipe: SmallRecipe, model: Path, work: Path, device: str, train: Train) -> Path:
    """The finished network and VLM trained on, run after run; `model` itself where the recipe has none.

    Another model's run has another folder.
    """
    for number in range(len(recipe.refinements)):
        hashes = model_hashes(model)
        folder = work / f"refined-{number + 1}-{hashes['model'][:8]}"
        place = RunFolder(folder=folder, cache=folder / "cache")
        recipe.refine_samples(number).write(place.recipe(recipe.side))
        config = recipe.refine_run(number, model)
        model = train_run(config, folder, hashes, device, train) / "last"
    return model


def model_hashes(model: Path) -> dict[str, str]:
    """What a run on a finished network depends on."""
    return {"model": file_sha256(model / "dit.safetensors")}


def encode_for(config: RunConfig, data: Path, model: Path, manifest: Path, cache: Path) -> None:
    """Encode a dataset folder as the finished model reads it, for an adapter run on it."""
    encoding = Encoding(
        config=config,
        plan=load_family(config.family).encode_plan(config),
        resolution=config.stages[0].resolution,
        cache=TensorCache(cache),
        encode_picture=PixelEncoder(),
        encode_prompt=PairEncoder(model),
    )
    encode_dataset(encoding, open_dataset(data), manifest, lambda done, total: None)


def train_lora(recipe: SmallRecipe, task: str, model: Path, work: Path, device: str, train: Train) -> Path:
    """One adapter on the finished model; its file. Another model or number of samples has another folder."""
    hashes = model_hashes(model)
    folder = work / f"{task}-lora-{hashes['model'][:8]}-{recipe.lora_samples}"
    config = recipe.lora_run(task, model)
    data = generate(
        Job(folder=work / f"{task}-data", config=recipe.lora_synthesis(task), count=recipe.lora_samples)
    )
    place = RunFolder(folder=folder, cache=folder / "cache")
    manifest = place.manifest(recipe.side)
    if not manifest.is_file():
        encode_for(config, data, model, manifest, place.cache)
    return train_run(config, folder, hashes, device, train) / "last.safetensors"


def in_bf16(source: Path, target: Path) -> None:
    """Copy a safetensors file with its metadata, numbers in bf16."""
    with safe_open(source, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        metadata = file.metadata()
    small = {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    write_tensors(target, small, metadata)


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def assemble(recipe: SmallRecipe, model: Path, loras: dict[str, Path], out: Path) -> Path:
    """Write the finished folder; ValueError (nothing is written) when it would be too large."""
    with whole_folder(out) as partial:
        copy_finished(model, partial)
        for task, path in loras.items():
            in_bf16(path, partial / LORAS / f"{task}.safetensors")
        write_json(partial / RECIPE, to_json(recipe))
        size = folder_size(partial)
        if size > LARGEST_BYTES:
            raise ValueError(
                f"the model takes {size / 1e6:.1f} MB, {LARGEST_BYTES / 1e6:.0f} MB are allowed; "
                "make the network or the adapters smaller"
            )
    return out


def require_replaceable(out: Path, work: Path) -> None:
    """ValueError unless `out` is new, empty or an older model of this recipe, and apart from `work`."""
    out, work = out.resolve(), work.resolve()
    if work.is_relative_to(out):
        raise ValueError(
            f"the model would take the place of {out}, where the work lies; choose another --out"
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; choose another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / RECIPE).is_file():
        raise ValueError(
            f"{out} holds other things than a small model (no {RECIPE}) and would be replaced; choose a new "
            "folder as --out"
        )


def train_small(
    recipe: SmallRecipe, work: Path, out: Path, device: str = "auto", train: Train = run_once
) -> Path:
    """Everything from nothing: VLM, network, both adapters, the folder `out`; goes on where it stopped.

    ValueError, before any work, where `out` must not be replaced.
    """
    require_replaceable(out, work)
    model = refine(recipe, train_base(recipe, work, device, train), work, device, train)
    loras = {task: train_lora(recipe, task, model, work, device, train) for task in LORA_TASKS}
    return assemble(recipe, model, loras, out)

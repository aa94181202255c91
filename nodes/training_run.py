"""One training run from a node: folders, encoding, the worker process, progress, the finished file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

import comfy.model_management
import folder_paths

from ..model_loaders.lora_check import bare_dreamomni, bare_kontext, bare_omnigen, unmatched_keys
from ..training.base_files import files_sha256, opened, weights_of
from ..training.cache import TensorCache
from ..training.checkpoint import checkpoint_steps, newest_data
from ..training.config import RunConfig, check_run_name
from ..training.config_json import from_json
from ..training.dataset import EditDataset
from ..training.doctor import examine
from ..training.encode import Encoding, PromptEncoder, chosen_indices, encode_dataset
from ..training.families import load_family
from ..training.files import CHUNK, write_json
from ..training.ladder import laddered
from ..training.launch import run_with_ladder
from ..training.optimizers import require_packages
from ..training.process import chosen_device
from ..training.run_file import RunFile, run_lock
from ..training.trainer import CHECKPOINTS, SAMPLES, RunFolder, require_resumable
from .progress import check_cancelled, progress_reporter

log = logging.getLogger("dreamomni")

RUNS, CACHE = ("dreamomni", "training"), ("dreamomni", "training-cache")
CONTINUE, FRESH = "continue if it exists", "new run only"
STRIP_HEIGHT = 256
LARGEST_ON_CPU = 2 << 30
HASHED_BETWEEN = 16 * CHUNK
"""Bytes of weights between two moves of the bar."""


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What travels on a DREAMOMNI_RUN wire: where a run lies; everything else is read from its folder."""

    folder: Path


def runs_root() -> Path:
    """Folder of all runs, below ComfyUI's output."""
    return Path(folder_paths.get_output_directory(), *RUNS)


def resumable_runs() -> list[str]:
    """Names of runs with a checkpoint, newest first."""
    root = runs_root()
    if not root.is_dir():
        return []
    found = [entry for entry in root.iterdir() if checkpoint_steps(entry / CHECKPOINTS)]
    return [
        entry.name for entry in sorted(found, key=lambda e: (e / CHECKPOINTS).stat().st_mtime, reverse=True)
    ]


def resume_choices() -> list[str]:
    """What the resume widget offers."""
    return [CONTINUE, FRESH, *resumable_runs()]


def chosen_name(run_name: str, resume: str) -> str:
    """The run to start or continue; ValueError for a name that is none or is taken."""
    name = check_run_name(run_name if resume in (CONTINUE, FRESH) else resume)
    steps = checkpoint_steps(runs_root() / name / CHECKPOINTS)
    if resume == FRESH and steps:
        raise ValueError(
            f"a run called {name!r} exists and stands at step {steps[-1]}; choose {CONTINUE!r} to go on with "
            "it, or another run_name"
        )
    if resume not in (CONTINUE, FRESH) and not steps:
        raise ValueError(f"no run called {name!r} can be continued; there are: {', '.join(resumable_runs())}")
    return name


def check_resume(config: RunConfig, folder: Path) -> None:
    """Raise ValueError, listing changed settings, unless the run in `folder` can go on with `config`."""
    data = newest_data(folder / CHECKPOINTS)
    if data is not None:
        old = laddered(from_json(RunConfig, data["config"]), folder)
        require_resumable(old, laddered(config, folder), data.get("base_hashes", {}))


def base_role(family: str) -> str:
    """Under which name a family looks for its base."""
    return {"dreamomni": "model", "vlm": "vlm"}.get(family, "transformer")


def base_parts(config: RunConfig) -> dict[str, tuple[Path, ...]]:
    """Role -> weight files of the network that is trained, and of every other base that is one file."""
    places = {role: Path(path) for role, path in config.base.items() if path}
    network = base_role(config.family)
    return {role: weights_of(path) for role, path in places.items() if role == network or path.is_file()}


def base_hashes(config: RunConfig) -> dict[str, str]:
    """SHA-256 of the weights of each base, those that encode among them; moves the bar, stops at a cancel.

    A LoRA names them, and a run does not go on with others.
    """
    parts = {role: weights_of(Path(path)) for role, path in config.base.items() if path}
    files = [file for part in parts.values() for file in part]
    report = hashing_report(sum(file.stat().st_size for file in files))
    return {role: files_sha256(part, report) for role, part in parts.items() if part}


def hashing_report(size: int) -> Callable[[], None]:
    """What is called after each CHUNK of `size` bytes that are read; it raises when cancelled.

    Tens of gigabytes take a minute, and a bar that is told of every chunk would slow the reading down.
    """
    report, chunks = progress_reporter(max(1, -(-size // HASHED_BETWEEN))), count(1)

    def read() -> None:
        check_cancelled()
        done, rest = divmod(next(chunks) * CHUNK, HASHED_BETWEEN)
        if not rest:
            report(done, None)

    return read


@dataclass(kw_only=True)
class Job:
    """A run together with what encodes for it."""

    config: RunConfig
    dataset: EditDataset
    encode_picture: Any
    encode_prompt: PromptEncoder
    device: str = "auto"
    processes: int = 1
    rewrites: bool = False
    """The prompt encoder asks a VLM that looks at the pictures."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return runs_root() / self.config.name

    @property
    def place(self) -> RunFolder:
        """The run's folder and its cache."""
        return RunFolder(folder=self.folder, cache=Path(folder_paths.get_output_directory(), *CACHE))

    def encode(self, config: RunConfig) -> None:
        """Fill the cache for every resolution of `config`, then free the encoders' memory."""
        plan = load_family(config.family).encode_plan(config)
        if self.rewrites:
            plan = replace(plan, prompt_sees_images=True, prompt_sees_originals=True)
        for resolution in sorted({stage.resolution for stage in config.stages}):
            work = Encoding(
                config=config,
                plan=plan,
                resolution=resolution,
                cache=TensorCache(self.place.cache),
                encode_picture=self.encode_picture,
                encode_prompt=self.encode_prompt,
            )
            encode_dataset(work, self.dataset, self.place.manifest(resolution), encoding_report(self.dataset))
        free_encoders()

    def check(self) -> None:
        """Raise what can be known before any work.

        Folder in use, no device, damaged base, changed settings, no samples.
        """
        run_lock(self.folder).release()
        require_device(self.config)
        require_readable(self.config)
        require_cards(self.processes)
        require_packages(self.config)
        check_resume(self.config, self.folder)
        chosen_indices(self.dataset, self.config.task, check_cancelled)

    def run(self) -> TrainingRun:
        """Look the data over, encode, train to the end; raises what the user must know."""
        self.check()
        found = examine(self.dataset, self.config.task, encoding_report(self.dataset))
        write_json(self.folder / "dataset.json", {"folder": str(self.dataset.folder), "text": found.text()})
        found.require_healthy()
        run = RunFile(
            config=self.config,
            cache=str(self.place.cache),
            device=self.device,
            watch_parent=True,
            base_hashes=base_hashes(self.config),
        )
        listener = Listener(self)
        run_with_ladder(run, self.folder, encode=self.encode, heard=listener, processes=self.processes)
        return TrainingRun(self.folder)


def free_encoders() -> None:
    """Give the card to the training process: ComfyUI's models go to host memory, its kept blocks back."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


class Listener:
    """Turns what the worker says into the node's progress bar, with a picture whenever one was drawn."""

    def __init__(self, job: Job) -> None:
        self.job, self.step = job, 0
        self.report = progress_reporter(job.config.total_steps)

    def __call__(self, event: dict[str, Any] | None) -> None:
        """Take one event, or a quiet half second; raises when the user cancelled."""
        check_cancelled()
        if event is None:
            return
        picture = None
        if event["event"] == "plan":
            log.info("%s: %s", self.job.config.name, event["text"])
        if event["event"] == "samples":
            picture = decode_samples(self.job, event["step"])
            free_encoders()
        if event["event"] == "exported" and self.job.config.adapter is not None:
            require_loadable(self.job.config, Path(event["files"][0]))
        if event["event"] in ("step", "samples", "started"):
            self.step = max(self.step, event["step"])
            self.report(self.step, picture)


def bare_model(config: RunConfig) -> Any:
    """ComfyUI's model of a run's base without weights; None when its LoRA is for no MODEL."""
    base = Path(config.base.get(base_role(config.family), ""))
    if config.family == "kontext":
        return bare_kontext(weights_of(base))
    bare = {"omnigen": bare_omnigen, "dreamomni": bare_dreamomni}.get(config.family)
    return bare(base) if bare is not None else None


def require_loadable(config: RunConfig, lora: Path) -> None:
    """Raise ValueError when ComfyUI would not load every part of a LoRA that was just written."""
    model = bare_model(config)
    unmatched = unmatched_keys(lora, model) if model is not None else []
    if unmatched:
        raise ValueError(
            f"{len(unmatched)} parts of the saved LoRA do not load in this ComfyUI, first {unmatched[0]}. "
            f"The run is kept in {lora.parent.parent}; please report this."
        )


def decode_samples(job: Job, step: int) -> Image.Image | None:
    """Decode the newest drawn latents to PNG strips (references, sample, target); the first one.

    None where it failed, which is logged and never ends the run.
    """
    first = None
    for path in sorted((job.folder / SAMPLES).glob(f"step-{step:09d}-*.safetensors")):
        try:
            strip = sample_strip(job, path)
            strip.save(path.with_suffix(".png"))
        except (RuntimeError, ValueError, OSError) as error:  # a full card, a full disk: the run goes on
            log.warning("no preview of step %d: %s", step, error)
            return first
        first = first or strip
    return first


def sample_strip(job: Job, path: Path) -> Image.Image:
    """References, the drawn sample and the target of one file, side by side."""
    latents = load_file(path)
    names = [*sorted(name for name in latents if name.startswith("reference")), "sample", "target"]
    pictures = [job.encode_picture.decode(latents[name]) for name in names]
    sized = [p.resize((max(1, p.width * STRIP_HEIGHT // p.height), STRIP_HEIGHT)) for p in pictures]
    strip = Image.new("RGB", (sum(p.width for p in sized), STRIP_HEIGHT))
    left = 0
    for picture in sized:
        strip.paste(picture, (left, 0))
        left += picture.width
    return strip


def run_notes(folder: Path) -> str:
    """What the dataset doctor said."""
    path = folder / "dataset.json"
    return json.loads(path.read_text(encoding="utf-8"))["text"] if path.is_file() else ""


def encoding_report(dataset: EditDataset) -> Callable[[int, int], None]:
    """A progress function over the samples of a dataset that notices a cancel."""
    report = progress_reporter(max(1, len(dataset)))
    return lambda done, total: report(done, None)


def require_device(config: RunConfig) -> None:
    """Raise ValueError when a large network would have to be trained on the CPU."""
    files = [file for part in base_parts(config).values() for file in part]
    size = sum(file.stat().st_size for file in files)
    host, worker = comfy.model_management.get_torch_device().type, chosen_device("auto", rank=0).type
    if size <= LARGEST_ON_CPU or "cpu" not in (host, worker):
        return
    place = "ComfyUI runs" if host == "cpu" else f"ComfyUI runs on {host!r}, but training would run"
    raise ValueError(
        f"{place} on the CPU and the base has {size / 2**30:.1f} GiB; that would take months. Training knows "
        "CUDA (NVIDIA, AMD with ROCm) and Apple's MPS only. Start ComfyUI with a CUDA device (check "
        "nvidia-smi and leave --cpu out)."
    )


def require_readable(config: RunConfig) -> None:
    """Raise ValueError when a base is damaged; only the headers are read."""
    for file in (file for part in base_parts(config).values() for file in part):
        if file.suffix == ".safetensors":
            with opened(file):
                pass


def require_cards(processes: int) -> None:
    """Raise ValueError when several training processes would have to share a GPU."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else processes
    if processes > 1 and processes > cards:
        raise ValueError(
            f"processes is {processes} and this computer has {cards} GPU(s): each process holds the whole "
            f"base on a GPU of its own. Set processes to {cards}; the result stays the same."
        )

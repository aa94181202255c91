"""One training run from a node: encoding, the worker process, progress."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management

from ..training.cache import TensorCache
from ..training.config import RunConfig
from ..training.dataset import EditDataset
from ..training.doctor import examine
from ..training.encode import Encoding, PromptEncoder, chosen_indices, encode_dataset
from ..training.events import Event
from ..training.families import load_family
from ..training.files import write_json
from ..training.launch import run_with_ladder
from ..training.optimizers import require_packages
from ..training.report import DATASET_NOTES
from ..training.run_file import RunFile, run_lock
from ..training.trainer import RunFolder
from .progress import check_cancelled, progress_reporter
from .training_bases import base_hashes
from .training_checks import check_resume, require_cards, require_device, require_loadable, require_readable
from .training_folders import TrainingRun, cache_root, runs_root
from .training_previews import decode_samples

log = logging.getLogger("dreamomni")


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
        return RunFolder(folder=self.folder, cache=cache_root())

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
        write_json(self.folder / DATASET_NOTES, {"folder": str(self.dataset.folder), "text": found.text()})
        found.require_healthy()
        run = RunFile(
            config=self.config,
            cache=str(self.place.cache),
            device=self.device,
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

    def __call__(self, event: Event | None) -> None:
        """Take one event, or a quiet half second; raises when the user cancelled."""
        check_cancelled()
        if event is None:
            return
        picture = None
        if event["event"] == "plan":
            log.info("%s: %s", self.job.config.name, event["text"])
        if event["event"] == "samples":
            picture = decode_samples(self.job.folder, self.job.encode_picture, event["step"])
            free_encoders()
        if event["event"] == "exported" and self.job.config.adapter is not None:
            require_loadable(self.job.config, Path(event["files"][0]))
        if event["event"] in ("step", "samples", "started"):
            self.step = max(self.step, event["step"])
            self.report(self.step, picture)


def encoding_report(dataset: EditDataset) -> Callable[[int, int], None]:
    """A progress function over the samples of a dataset that notices a cancel."""
    report = progress_reporter(max(1, len(dataset)))
    return lambda done, total: report(done, None)

"""Carries ablation runs out in a folder: what is finished there is not done again."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..config_json import to_json
from ..evaluation.cases import Case
from ..events import Event, Heard
from ..families import load_family
from ..files import file_sha256, write_json
from ..launch import TrainingError
from ..process import chosen_device
from ..recipes.loading import add_lora, load_trained
from ..recipes.small_run import LORAS, encode_for
from ..recipes.small_tasks import LORA_TASKS
from ..recipes.small_vlm import ensure_small_vlm
from ..run_file import RunFile, run_lock
from ..session import Session
from ..synthesis.generate import Job as Drawing
from ..synthesis.generate import generate
from ..team import Team
from ..trainer import EXPORTS, DivergedError, RunFolder, Trainer
from .kinds import KINDS, TAUGHT, Kind, taught
from .measures import HeldOut, judged, judged_cases
from .variants import BARE, Budget, Job

log = logging.getLogger("dreamomni")

RESULT, CURVE = "result.json", "curve.jsonl"


def train_here(run: RunFile, folder: Path, heard: Heard) -> int:
    """Train in this process, which saves starting one for every small run; 0, or 1 when it diverged."""
    session = Session(run.config, load_family(run.config.family), chosen_device(run.device, 0))
    place = RunFolder(folder=folder, cache=Path(run.cache))
    trainer = Trainer(session, place, Team(), heard, lambda: False, run.base_hashes)
    try:
        trainer.run()
    except DivergedError:
        log.exception("%s diverged", run.config.name)
        return 1
    return 0


class Workplace:
    """The folder of all runs, the cases they are judged on, and the model that LoRAs are trained on."""

    def __init__(self, folder: Path, budget: Budget, model: Path | None = None) -> None:
        self.folder, self.budget, self.model = folder, budget, model
        self._held_out: dict[str, HeldOut] = {}

    def of(self, job: Job) -> Path:
        """The folder of a run."""
        return self.folder / job.name

    def held_out(self, job: Job) -> dict[str, HeldOut]:
        """The samples of a run's curves; one set for all runs."""
        for name in measured_kinds(job):
            if name not in self._held_out:
                self._held_out[name] = HeldOut(self.budget.recipe(0), KINDS[name], self.budget.held_out)
        return {name: self._held_out[name] for name in measured_kinds(job)}

    def cases(self, kind: Kind) -> list[Case]:
        """The judged cases of a kind of samples."""
        config = kind.synthesis(self.budget.recipe(0), split="test")
        return [
            case
            for task, _ in kind.tasks
            for group in kind.groups
            for case in judged_cases(config, task, group, self.budget.cases)
        ]

    def base_model(self) -> Path:
        """The finished model; ValueError with what to do when none was named."""
        if self.model is None or not (self.model / "config.json").is_file():
            raise ValueError(
                "positions and the adapters' switch are compared with LoRAs on a finished model; name its "
                "folder with --model, or train one first with `python dev.py train-small`"
            )
        return self.model

    def model_of(self, job: Job) -> str | None:
        """The hash of the finished model that a run starts from, if it does."""
        return file_sha256(self.base_model() / "dit.safetensors") if job.variant.adapter else None


def measured_kinds(job: Job) -> tuple[str, ...]:
    """What a run is measured on: edits and text-to-image, two references, or each adapter's requests."""
    if job.variant.positions:
        return TAUGHT["all"]
    return ("reference", "sheets") if job.variant.adapter else ("edit", "generate")


def settings_of(job: Any) -> dict[str, Any]:
    """What a run depends on, of a job as JSON: nothing of LoRAs for a network and the other way round."""
    lora = job["variant"]["adapter"] is not None
    other = {"steps", "batch_size", "measured", "network", "vlm"}
    budget = {
        name: value
        for name, value in job["budget"].items()
        if (name not in other if lora else not name.startswith("lora_"))
    }
    return {**job, "budget": budget}


def known_result(place: Workplace, job: Job) -> dict[str, Any] | None:
    """What is known of a finished run; ValueError when its folder holds it at another budget."""
    path = place.of(job) / RESULT
    if not path.is_file():
        return None
    known = json.loads(path.read_text(encoding="utf-8"))
    if settings_of(known["job"]) != settings_of(to_json(job)) or known.get("model") != place.model_of(job):
        raise ValueError(
            f"{path.parent} holds this run with another budget, model or other settings; give another "
            "--work, or remove the folder"
        )
    return known


def finish(place: Workplace, job: Job) -> None:
    """Train, measure and judge a run; TrainingError when training ends badly."""
    makers = {None: trained_model, BARE: bare_model}
    model = makers.get(job.variant.adapter, lora_model)(place, job)
    judgement = {
        name: asdict(judged(model, place.cases(KINDS[name]), place.budget.evaluations))
        for name in measured_kinds(job)
    }
    folder = place.of(job)
    result = {
        "job": to_json(job),
        "model": place.model_of(job),
        "curve": read_curve(folder / CURVE),
        "judged": judgement,
    }
    write_json(folder / RESULT, result)
    log.info("%s: %s", job.name, json.dumps(judgement))


def finish_free(place: Workplace, jobs: Sequence[Job]) -> None:
    """Every run that is neither finished nor in another process's hands."""
    for job in jobs:
        try:
            lock = run_lock(place.of(job))
        except BlockingIOError:
            continue
        with lock:
            if known_result(place, job) is None:
                finish(place, job)


def trained_model(place: Workplace, job: Job) -> Path:
    """A network and VLM trained from nothing; their folder."""
    folder = place.of(job)
    run = RunFolder(folder=folder / "run", cache=folder / "cache")
    vlm = ensure_small_vlm(folder / "vlm", job.recipe().vlm, job.recipe().seed)
    job.samples().write(run.recipe(job.recipe().side))
    model = run.folder / EXPORTS / "last"
    hashes = {"vlm": file_sha256(vlm / "model.safetensors")}
    curve = Curve(place, job, lambda: load_trained(model))
    file = RunFile(config=job.config(vlm), cache=str(run.cache), device="cpu", base_hashes=hashes)
    run_to_the_end(file, run.folder, curve)
    return model


def bare_model(place: Workplace, job: Job) -> Path:
    """The finished model without a LoRA, measured once; its folder."""
    model = place.of(job) / "model"
    copy_model(place.base_model(), model, None)
    Curve(place, job, lambda: load_trained(model)).measure(place.budget.lora_steps)
    return model


def lora_model(place: Workplace, job: Job) -> Path:
    """The finished model with the run's position scheme, and its LoRA for every task; their folder."""
    base, folder = place.base_model(), place.of(job)
    config, run = job.config(base), RunFolder(folder=folder / "run", cache=place.folder / "reference-cache")
    side, model = job.recipe().side, folder / "model"
    manifest = encoded_references(place, job)
    run.folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(manifest, run.manifest(side))
    copy_model(base, model, job.variant.positions)
    lora = run.folder / EXPORTS / "last.safetensors"

    def adapted() -> Any:
        pair = load_trained(model)
        add_lora(pair, lora)
        return pair

    hashes = {"model": file_sha256(base / "dit.safetensors")}
    file = RunFile(config=config, cache=str(run.cache), device="cpu", base_hashes=hashes)
    run_to_the_end(file, run.folder, Curve(place, job, adapted))
    (model / LORAS).mkdir(exist_ok=True)
    for task in LORA_TASKS:
        shutil.copyfile(lora, model / LORAS / f"{task}.safetensors")
    return model


def copy_model(base: Path, model: Path, scheme: str | None) -> None:
    """Copy a model folder without its LoRAs, with another position scheme where one is given."""
    shutil.copytree(base, model, ignore=shutil.ignore_patterns(LORAS), dirs_exist_ok=True)
    if scheme is None:
        return
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["network"]["reference_positions"] = scheme
    write_json(model / "config.json", config)


def encoded_references(place: Workplace, job: Job) -> Path:
    """The manifest of a LoRA's encoded samples, the same for every seed and position scheme."""
    adapter, known = str(job.variant.adapter), (place.model_of(job) or "")[:8]
    path = place.folder / f"reference-samples-{adapter}-{known}.jsonl"
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            drawing = Drawing(
                folder=place.folder / f"reference-data-{adapter}",
                config=taught(place.budget.recipe(0), adapter),
                count=place.budget.lora_samples,
            )
            base, cache = place.base_model(), place.folder / "reference-cache"
            encode_for(job.config(base), generate(drawing), base, path, cache)
    return path


class Curve:
    """Measures a network each time the run writes its weights."""

    def __init__(self, place: Workplace, job: Job, load: Callable[[], Any]) -> None:
        self.held_out, self.load = place.held_out(job), load
        self.path, self.name = place.of(job) / CURVE, job.name

    def __call__(self, event: Event | None) -> None:
        """Hear one event of the training process."""
        if event is None or event["event"] != "exported" or event["name"] != "last":
            return
        self.measure(event["step"])

    def measure(self, step: int) -> None:
        """Add the point of a step, unless it is there."""
        if step in {point["step"] for point in read_curve(self.path)}:
            return
        pair = self.load()
        point = {kind: asdict(held.error(pair)) for kind, held in self.held_out.items()}
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"step": step, **point}) + "\n")
        log.info("%s: step %d, %s", self.name, step, json.dumps(point))


def read_curve(path: Path) -> list[dict[str, Any]]:
    """The points of a curve, by step."""
    if not path.is_file():
        return []
    points = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(points, key=lambda point: point["step"])


def run_to_the_end(file: RunFile, folder: Path, curve: Curve) -> None:
    """Train or go on; TrainingError for a run that failed."""
    code = train_here(file, folder, curve)
    if code != 0:
        raise TrainingError(f"{file.config.name} ended with code {code}")


def all_results(place: Workplace, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """What is known of every run, by its name; TrainingError when one is missing."""
    found = {job.name: known_result(place, job) for job in jobs}
    missing = [name for name, result in found.items() if result is None]
    if missing:
        raise TrainingError(
            f"{len(missing)} of {len(jobs)} runs are not finished ({missing[0]} first); "
            "the same command goes on"
        )
    return {name: result for name, result in found.items() if result is not None}

"""Training a prompt translator, alone or as the first half of a joint run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..model_loaders.vlm import LoadedVLM, load_vlm
from ..training.config import RunConfig, one_of
from ..training.config_json import config_hash
from ..training.dataset import EditDataset
from ..training.families import families_where, load_family
from ..training.files import write_json
from ..training.presets import TRANSLATOR_SUFFIX, translator_plan, translator_run, vlm_run
from ..training.vlm_merge import merge_vlm
from .schema import node_input, node_schema
from .training_encoders import required
from .training_folders import CONTINUE, FRESH, TrainingRun, chosen_name, runs_root
from .training_inputs import (
    STAGE_CATEGORY,
    chosen_overrides,
    dataset_input,
    name_input,
    override_inputs,
    resume_input,
    run_outputs,
)
from .training_job import make_job
from .training_results import (
    best_export,
    publish_export,
    publish_folder,
    published_folder,
    require_free,
    result_state,
)
from .training_run import Job
from .types import Vlm

TAUGHT = "taught.json"
METHODS = ("lora", "full")
USUAL = {
    "steps": "500",
    "learning_rate": "1e-4, with full 1e-5",
    "rank": "64",
    "batch_size": "1",
    "gradient_accumulation": "8",
    "precision": "bf16",
}
"""What a 0 stands for, as tooltips say it."""


class TrainVLM(io.ComfyNode):
    """Teaches a VLM to write the prompts of its image model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniTrainVLM",
            display_name="Train Prompt Translator",
            category=STAGE_CATEGORY,
            description="Teaches a Qwen-VL to answer instruction and pictures with one tagged prompt. The "
            "result is a folder of its own in models/vlm.",
            search_aliases=["sft", "qwen finetune", "vlm training"],
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                node_input(Vlm, "vlm", tooltip="The VLM to start from; its folder is not changed."),
                dataset_input(),
                name_input("my-translator"),
                node_input(
                    io.Combo,
                    "method",
                    options=list(METHODS),
                    optional=True,
                    default=METHODS[0],
                    tooltip="lora: small, merged at the end. full: all language weights, 16 bytes each.",
                ),
                *override_inputs(USUAL),
                resume_input(),
            ],
            outputs=run_outputs("vlm_name", "Folder in models/vlm."),
        )

    @classmethod
    def fingerprint_inputs(
        cls, run_name: str | None = None, resume: str | None = CONTINUE, **_: object
    ) -> str:
        return result_state("vlm", run_name, resume)

    @classmethod
    def execute(cls, vlm: Any, dataset: EditDataset, run_name: str, **optional: Any) -> io.NodeOutput:
        method = optional.get("method", METHODS[0])
        one_of("method", method, METHODS)
        config = vlm_run(
            name=chosen_name(run_name, optional.get("resume", CONTINUE)),
            folder=str(vlm.folder.path),
            chosen=chosen_overrides(optional),
            full=method == "full",
            seed=optional.get("seed", 0),
        )
        run = teach(config, dataset, vlm)
        return io.NodeOutput(run.folder.name, run)


def teach(config: RunConfig, dataset: EditDataset, vlm: Any) -> TrainingRun:
    """Train a translator and put it into models/vlm; ValueError when its name is the start model's."""
    base = vlm.folder.path
    require_free("vlm", config.name)
    if base.resolve() == published_folder("vlm", config.name).resolve():
        raise ValueError(f"run {config.name!r} would overwrite the VLM it starts from; choose another name")
    run = make_job(config, dataset, vlm=vlm).run()
    publish_vlm(run, base)
    return run


def publish_vlm(run: TrainingRun, base: Path) -> str:
    """Put the trained folder, or the base with its LoRA merged in, into models/vlm; its name there."""
    export = best_export(run.folder)
    if export.is_dir():
        return publish_export(run, "vlm")
    return publish_folder(run, "vlm", lambda folder: merge_vlm(base, export, folder))


def joint_name(run_name: str, resume: str, preset: str) -> str:
    """Name of the LoRA's run; in a joint preset the list of runs may name either half."""
    if translator_plan(preset) is None:
        return chosen_name(run_name, resume)
    if resume not in (CONTINUE, FRESH):
        run_name, resume = lora_half(resume, preset), CONTINUE
    chosen_name(run_name + TRANSLATOR_SUFFIX, resume)
    return chosen_name(run_name, resume)


def lora_half(run: str, preset: str | None) -> str:
    """The LoRA's run where, in a joint preset, `run` may be either half."""
    joint = preset is not None and translator_plan(preset) is not None
    return run.removesuffix(TRANSLATOR_SUFFIX) if joint else run


def joint_job(job: Job, preset: str, encoders: dict[str, Any], steps: int) -> Job:
    """The job itself, or with a joint preset the same LoRA on the prompts of a translator taught here first.

    Raises ValueError before anything long when one of the halves could not run.
    """
    plan = translator_plan(preset)
    if plan is None:
        return job
    config = job.config
    if not load_family(config.family).reads_translations or config.task not in ("edit", "generate"):
        able = " and ".join(families_where(lambda family: family.reads_translations))
        raise ValueError(
            f"the joint preset trains {able} for edit or generate, got {config.family} for {config.task}; "
            "choose another preset, or one of these"
        )
    vlm = required(encoders["vlm"], "vlm", "the joint preset teaches it to write prompts first")
    job.check()
    settings = translator_run(config, str(vlm.folder.path), plan, steps)
    encoders = {**encoders, "vlm": taught_translator(settings, job.dataset, vlm)}
    return make_job(config, job.dataset, **encoders, processes=job.processes)


def taught_translator(settings: RunConfig, dataset: EditDataset, vlm: Any) -> LoadedVLM:
    """The translator of `settings`; one that was taught with them on these samples is only loaded."""
    target = published_folder("vlm", settings.name)
    record = runs_root() / settings.name / TAUGHT
    facts = {"settings": config_hash(settings), "dataset": dataset.fingerprint}
    if not record.is_file() or json.loads(record.read_text(encoding="utf-8")) != facts or not target.is_dir():
        teach(settings, dataset, vlm)
        write_json(record, facts)
    return load_vlm(target, vlm.precision.name)


NODES = [TrainVLM]

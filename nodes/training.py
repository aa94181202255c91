"""Training from the graph: LoRAs, whole DreamOmni networks, prompt translators."""

from __future__ import annotations

import dataclasses
from pathlib import Path, PurePath
from typing import Any

from comfy_api.latest import io

from ..dit.dreamomni.config import PRESETS as NETWORKS
from ..model_loaders.paths import model_folder, model_folder_names, register_folders
from ..model_loaders.weight_files import weight_names, weight_paths
from ..training.config import PRECISIONS, RunConfig
from ..training.dataset import EditDataset
from ..training.families import load_family
from ..training.families.dreamomni_setup import STAGE_PLANS
from ..training.presets import PRESETS, Overrides, dreamomni_run, lora_run, parse_stages, vlm_run
from ..training.vlm_merge import merge_vlm
from .schema import node_input, node_schema
from .training_encoders import RewrittenPrompts, picture_encoder, prompt_encoder, required
from .training_run import (
    CONTINUE,
    Job,
    TrainingRun,
    base_role,
    best_export,
    chosen_name,
    copy_whole,
    publish_folder,
    publish_lora,
    resume_choices,
)
from .types import CATEGORY, Dataset, Processor, Run, Vlm

register_folders()

STAGE_CATEGORY = f"{CATEGORY}/train"
BASES = "diffusion_models"
FOLDER_FAMILIES = ("omnigen", "dreamomni")
LORA_FAMILIES = ("kontext", *FOLDER_FAMILIES)
FROM_PRESET = "as the preset"
MAX_SEED = 2**63 - 1


def base_choices() -> list[str]:
    """Diffusion model files and sets of shards; OmniGen and DreamOmni folders with their kind in front."""
    files = [name for name in weight_names(BASES) if not name.endswith(".sft")]
    return [*files, *(f"{key}/{name}" for key in FOLDER_FAMILIES for name in model_folder_names(key))]


def base_path(base: str, family: str) -> Path:
    """File or folder of a base; ValueError when it belongs to another family."""
    if family in FOLDER_FAMILIES:
        key, _, name = base.partition("/")
        if key != family:
            raise ValueError(f"{base!r} is no base for {family}; choose one that begins with {family}/")
        return model_folder(key, name)
    if base.partition("/")[0] in FOLDER_FAMILIES and base in base_choices():
        raise ValueError(f"{base!r} is no base for kontext; choose a file of models/diffusion_models")
    files = weight_paths(BASES, base)
    return files[0].parent if len(files) > 1 and files[0].parent.name == PurePath(base).name else files[0]


def make_job(
    config: RunConfig,
    dataset: EditDataset,
    *,
    clip: Any = None,
    vae: Any = None,
    vlm: Any = None,
    processor: Any = None,
) -> Job:
    """A run with the connected encoders; a VLM beside a text encoder rewrites the prompts first."""
    plan = load_family(config.family).encode_plan(config)
    prompts = prompt_encoder(plan, clip, vlm, processor)
    rewrites = vlm is not None and plan.prompt_encoding == "clip"
    if rewrites:
        prompts = RewrittenPrompts(prompts, vlm, "generate" if config.task == "generate" else "edit")
    return Job(
        config=config,
        dataset=dataset,
        encode_picture=picture_encoder(config, plan, vae),
        encode_prompt=prompts,
        rewrites=rewrites,
    )


def number(kind: Any, name: str, tooltip: str, **bounds: Any) -> io.Input:
    """An optional number whose 0 means the preset's value."""
    return node_input(
        kind, name, default=0, min=0, optional=True, tooltip=f"{tooltip} 0: as the preset says.", **bounds
    )


def override_inputs() -> list[io.Input]:
    """Optional settings that take the place of the preset's."""
    return [
        number(io.Int, "steps", "Optimizer steps.", max=1_000_000),
        number(io.Float, "learning_rate", "Rate of the optimizer.", max=1.0, step=1e-7, round=1e-9),
        number(io.Int, "rank", "Rank of the LoRA; alpha is set equal to it.", max=1024),
        number(io.Int, "batch_size", "Samples computed at once; costs memory.", max=256),
        number(io.Int, "gradient_accumulation", "Batches added up to one optimizer step.", max=1024),
        number(io.Int, "resolution", "Side of a square with the area trained at, in pixels.", max=2048),
        node_input(
            io.Combo,
            "precision",
            options=[FROM_PRESET, *PRECISIONS],
            default=FROM_PRESET,
            optional=True,
            tooltip="How the frozen base is held: fp8 and int8 take half of bf16, nf4 a quarter (needs "
            "bitsandbytes). The trained weights are always fp32.",
        ),
        node_input(
            io.Int,
            "seed",
            default=0,
            min=0,
            max=MAX_SEED,
            optional=True,
            control_after_generate=False,
            tooltip="Fixes start weights, order, noise and dropout.",
        ),
    ]


def resume_input() -> io.Input:
    """The widget that lists runs to go on with."""
    return node_input(
        io.Combo,
        "resume",
        options=resume_choices(),
        default=CONTINUE,
        optional=True,
        tooltip="Go on with a run of this name if there is one, insist on a new one, or pick an old run.",
    )


def processes_input() -> io.Input:
    """How many devices share a run."""
    return node_input(
        io.Int,
        "processes",
        default=1,
        min=1,
        max=16,
        optional=True,
        tooltip="Training processes, one per GPU, started by accelerate. They share the batch, so the "
        "result stays the same.",
    )


def name_input(default: str) -> io.Input:
    """The run's name."""
    return node_input(
        io.String,
        "run_name",
        default=default,
        tooltip="Folder in output/dreamomni/training and name of the result; no slashes.",
    )


def run_outputs(name: str, label: str) -> list[Any]:
    """Outputs of the training nodes."""
    return [
        io.String.Output(name, display_name=name, tooltip=label),
        Run.Output("run", display_name="run", tooltip="For the training report."),
    ]


def dataset_input() -> io.Input:
    """The samples."""
    return node_input(Dataset, "dataset", tooltip="Samples: from Load Dataset or Sticker Dataset.")


def chosen_overrides(settings: dict[str, Any]) -> Overrides:
    """The optional widgets that were set."""
    names = {field.name for field in dataclasses.fields(Overrides)}
    given = {name: value for name, value in settings.items() if name in names}
    if given.get("precision") == FROM_PRESET:
        given["precision"] = ""
    return Overrides(**given)


class TrainLoRA(io.ComfyNode):
    """Trains a LoRA that edits, generates or extracts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniTrainLoRA",
            display_name="Train LoRA",
            category=STAGE_CATEGORY,
            description="Trains a LoRA on pairs with any number of references, with the position ids that "
            "inference uses. Pictures and prompts are encoded here with your own models, then a separate "
            "process trains; cancelling keeps a checkpoint, queueing again goes on.",
            search_aliases=["fine-tune", "kontext training", "lora training", "trainer"],
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                node_input(
                    io.Combo, "base", options=base_choices(), tooltip="The model to train on, never changed."
                ),
                node_input(
                    io.Combo, "family", options=["kontext", "omnigen", "dreamomni"], tooltip="Its kind."
                ),
                dataset_input(),
                name_input("my-lora"),
                node_input(
                    io.Combo,
                    "task",
                    options=["edit", "generate", "extract", "all"],
                    tooltip="Which samples are used; edit and generate become two LoRAs of one dataset.",
                ),
                node_input(
                    io.Combo,
                    "preset",
                    options=list(PRESETS),
                    tooltip="Where all other settings come from. The memory presets are estimates that were "
                    "not run on such cards; when memory runs out the run restarts with less by itself.",
                ),
                node_input(io.Clip, "clip", optional=True, tooltip="kontext: text encoders of FLUX."),
                node_input(io.Vae, "vae", optional=True, tooltip="VAE of the base; decodes samples too."),
                node_input(
                    Vlm,
                    "vlm",
                    optional=True,
                    tooltip="dreamomni: its VLM. kontext: a prompt translator; the LoRA is then trained on "
                    "the translator's prompts, as DreamOmni2 was.",
                ),
                node_input(Processor, "processor", optional=True, tooltip="omnigen: from Load OmniGen."),
                *override_inputs(),
                resume_input(),
                processes_input(),
            ],
            outputs=run_outputs("lora_name", "The LoRA as LoRA loaders list it."),
        )

    @classmethod
    def execute(
        cls,
        base: str,
        family: str,
        dataset: EditDataset,
        run_name: str,
        task: str,
        preset: str,
        **optional: Any,
    ) -> io.NodeOutput:
        config = lora_run(
            name=chosen_name(run_name, optional.get("resume", CONTINUE)),
            family=family,
            task=task,
            base={base_role(family): str(base_path(base, family))},
            preset=preset,
            chosen=chosen_overrides(optional),
            seed=optional.get("seed", 0),
        )
        encoders = {name: optional.get(name) for name in ("clip", "vae", "vlm", "processor")}
        job = make_job(config, dataset, **encoders)
        run = dataclasses.replace(job, processes=optional.get("processes", 1)).run()
        return io.NodeOutput(publish_lora(run), run)


class TrainDreamOmni(io.ComfyNode):
    """Trains a DreamOmni network from nothing, stage by stage."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniTrainDreamOmni",
            display_name="Train DreamOmni",
            category=STAGE_CATEGORY,
            description="Trains all weights of a DreamOmni network, text-to-image and editing together, in "
            "stages of growing resolution.",
            search_aliases=["pretrain", "from scratch", "train dit"],
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                node_input(
                    io.Combo, "config", options=list(NETWORKS), default="tiny", tooltip="Size of the network."
                ),
                dataset_input(),
                name_input("my-dreamomni"),
                node_input(
                    io.String,
                    "stages",
                    multiline=True,
                    default="",
                    tooltip="A line per stage: resolution batch learning_rate steps. Empty: as usual.",
                ),
                node_input(Vlm, "vlm", optional=True, tooltip="Reads prompts and pictures; stays as it is."),
                node_input(io.Vae, "vae", optional=True, tooltip="Not needed by networks on pixels."),
                node_input(
                    io.Int, "seed", default=0, min=0, max=MAX_SEED, optional=True,
                    control_after_generate=False, tooltip="Fixes everything that is drawn.",
                ),
                resume_input(),
            ],
            outputs=run_outputs("model_name", "Folder in models/dreamomni."),
        )  # fmt: skip

    @classmethod
    def execute(
        cls, config: str, dataset: EditDataset, run_name: str, stages: str, **optional: Any
    ) -> io.NodeOutput:
        vlm = required(optional.get("vlm"), "vlm", "a DreamOmni network reads prompts and pictures with it")
        settings = dreamomni_run(
            name=chosen_name(run_name, optional.get("resume", CONTINUE)),
            base={"vlm": str(vlm.folder.path)},
            options={"preset": config},
            stages=parse_stages(stages) if stages.strip() else STAGE_PLANS[config]().stages,
            seed=optional.get("seed", 0),
        )
        run = make_job(settings, dataset, vlm=vlm, vae=optional.get("vae")).run()
        name = publish_folder(run, "dreamomni", lambda target: copy_whole(best_export(run.folder), target))
        return io.NodeOutput(name, run)


class TrainVLM(io.ComfyNode):
    """Teaches a VLM to write the prompts of its image model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniTrainVLM",
            display_name="Train prompt translator",
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
                    options=["lora", "full"],
                    optional=True,
                    default="lora",
                    tooltip="lora: small, merged at the end. full: all language weights, 16 bytes each.",
                ),
                *[i for i in override_inputs() if i.id != "resolution"],
                resume_input(),
            ],
            outputs=run_outputs("vlm_name", "Folder in models/vlm."),
        )

    @classmethod
    def execute(cls, vlm: Any, dataset: EditDataset, run_name: str, **optional: Any) -> io.NodeOutput:
        base = vlm.folder.path
        config = vlm_run(
            name=chosen_name(run_name, optional.get("resume", CONTINUE)),
            folder=str(base),
            chosen=chosen_overrides(optional),
            full=optional.get("method") == "full",
            seed=optional.get("seed", 0),
        )
        run = make_job(config, dataset, vlm=vlm).run()
        return io.NodeOutput(publish_folder(run, "vlm", lambda target: publish_vlm(run, base, target)), run)


def publish_vlm(run: TrainingRun, base: Path, target: Path) -> None:
    """The trained folder, or the base with its LoRA merged in."""
    export = best_export(run.folder)
    if export.is_dir():
        copy_whole(export, target)
    else:
        merge_vlm(base, export, target)


NODES = [TrainLoRA, TrainDreamOmni, TrainVLM]

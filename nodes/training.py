"""Training from the graph: LoRAs and whole DreamOmni networks."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from comfy_api.latest import io

from ..dit.dreamomni.config import PRESETS as NETWORKS
from ..model_loaders.paths import model_folder, model_folder_names
from ..model_loaders.weight_files import weight_names, weight_paths
from ..training.config import one_of
from ..training.dataset import EditDataset
from ..training.families import FAMILIES, families_where, load_family
from ..training.families.dreamomni_setup import STAGE_PLANS
from ..training.presets import (
    AS_FAMILY,
    EVEN,
    LORA_OPTIMIZERS,
    PRESETS,
    dreamomni_run,
    lora_run,
    parse_stages,
    with_changed_region,
    with_optimizer,
    with_timesteps,
)
from .fingerprints import base_folder_state, weights_state
from .schema import node_input, node_schema
from .small_vae import small_vae_base
from .training_encoders import required
from .training_folders import CONTINUE, chosen_name
from .training_inputs import (
    STAGE_CATEGORY,
    changed_region_input,
    chosen_overrides,
    dataset_input,
    name_input,
    number,
    optimizer_input,
    override_inputs,
    processes_input,
    resume_input,
    run_outputs,
    seed_input,
    timesteps_input,
)
from .training_job import make_job
from .training_results import (
    lora_name,
    publish_lora,
    publish_network,
    require_free,
    result_state,
)
from .training_translator import joint_job, joint_name, lora_half
from .types import Processor, Vlm

BASES = "diffusion_models"


def lora_families() -> tuple[str, ...]:
    """The families whose LoRAs are trained here."""
    return families_where(lambda family: family.trains_image_lora)


def base_choices() -> list[str]:
    """Diffusion model files and sets of shards; model folders (OmniGen, ...) with their kind in front."""
    files = [name for name in weight_names(BASES) if not name.endswith(".sft")]
    keys = [load_family(family).base_folder for family in lora_families()]
    return [*files, *(f"{key}/{name}" for key in keys if key for name in model_folder_names(key))]


def base_path(base: str, family: str) -> Path:
    """File or folder of a base; ValueError when it belongs to another family."""
    folder = load_family(family).base_folder
    if folder:
        key, _, name = base.partition("/")
        if key != folder:
            raise ValueError(f"{base!r} is no base for {family}; choose one that begins with {folder}/")
        return model_folder(key, name)
    # A folder of diffusion models may be called like a family, too.
    if base not in weight_names(BASES) and base in base_choices():
        raise ValueError(f"{base!r} is no base for {family}; choose a file of models/diffusion_models")
    files = weight_paths(BASES, base)
    return files[0].parent if len(files) > 1 and files[0].parent.name == PurePath(base).name else files[0]


def base_state(base: str | None, family: str | None) -> str:
    """State of a base's files, for what ComfyUI keeps of a run on it."""
    folder = load_family(family).base_folder if base and family in FAMILIES else ""
    if base and folder:
        return base_folder_state(folder, base.partition("/")[2])
    return weights_state(BASES, base)


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
                node_input(io.Combo, "family", options=list(lora_families()), tooltip="Its kind."),
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
                    "not run on such cards; when memory runs out the run restarts with less by itself. joint "
                    "teaches the connected vlm to write prompts first, then the LoRA on those prompts.",
                ),
                node_input(io.Clip, "clip", optional=True, tooltip="kontext: text encoders of FLUX."),
                node_input(io.Vae, "vae", optional=True, tooltip="VAE of the base; decodes samples too."),
                node_input(
                    Vlm,
                    "vlm",
                    optional=True,
                    tooltip="dreamomni: its VLM. kontext: a prompt translator; the LoRA is then trained on "
                    "the translator's prompts, as DreamOmni2 was. Joint preset: the VLM to teach first.",
                ),
                node_input(Processor, "processor", optional=True, tooltip="omnigen: from Load OmniGen."),
                *override_inputs(),
                resume_input(),
                processes_input(),
                number(
                    io.Int,
                    "translator_steps",
                    "Joint preset: steps of the prompt translator.",
                    "500",
                    max=1_000_000,
                ),
                changed_region_input(EVEN),
                optimizer_input(),
                timesteps_input(),
            ],
            outputs=run_outputs("lora_name", "The LoRA as LoRA loaders list it."),
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        base: str | None = None,
        family: str | None = None,
        run_name: str | None = None,
        resume: str | None = CONTINUE,
        preset: str | None = None,
        **_: object,
    ) -> str:
        run = resume and lora_half(resume, preset)
        return f"{base_state(base, family)} {result_state('loras', run_name, run)}"

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
        one_of("family", family, lora_families())
        chosen = chosen_overrides(optional)
        config = lora_run(
            name=joint_name(run_name, optional.get("resume", CONTINUE), preset),
            family=family,
            task=task,
            base={load_family(family).base_role: str(base_path(base, family))},
            preset=preset,
            chosen=chosen,
            seed=optional.get("seed", 0),
        )
        config = with_changed_region(config, optional.get("changed_region", EVEN))
        config = with_optimizer(config, optional.get("optimizer", LORA_OPTIMIZERS[0]), chosen)
        config = with_timesteps(config, optional.get("timesteps", AS_FAMILY))
        require_free("loras", lora_name(config.name), config.name)
        encoders = {name: optional.get(name) for name in ("clip", "vae", "vlm", "processor")}
        job = make_job(config, dataset, **encoders, processes=optional.get("processes", 1))
        run = joint_job(job, preset, encoders, optional.get("translator_steps", 0)).run()
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
                    tooltip="A line per stage: resolution batch learning_rate steps. Empty: those of the "
                    "config, listed in this node's help.",
                ),
                node_input(Vlm, "vlm", optional=True, tooltip="Reads prompts and pictures; stays as it is."),
                node_input(
                    io.Vae,
                    "vae",
                    optional=True,
                    tooltip="For small and paper-2.5b: Flux's or a small one; a small VAE travels with "
                    "the result.",
                ),
                seed_input("Fixes everything that is drawn."),
                resume_input(),
                changed_region_input("mask"),
            ],
            outputs=run_outputs("model_name", "Folder in models/dreamomni."),
        )

    @classmethod
    def fingerprint_inputs(
        cls, run_name: str | None = None, resume: str | None = CONTINUE, **_: object
    ) -> str:
        return result_state("dreamomni", run_name, resume)

    @classmethod
    def execute(
        cls, config: str, dataset: EditDataset, run_name: str, stages: str, **optional: Any
    ) -> io.NodeOutput:
        one_of("config", config, tuple(NETWORKS))
        vlm = required(optional.get("vlm"), "vlm", "a DreamOmni network reads prompts and pictures with it")
        settings = dreamomni_run(
            name=chosen_name(run_name, optional.get("resume", CONTINUE)),
            base={"vlm": str(vlm.folder.path), **small_vae_base(optional.get("vae"))},
            options={"preset": config},
            stages=parse_stages(stages) if stages.strip() else STAGE_PLANS[config](),
            seed=optional.get("seed", 0),
        )
        settings = with_changed_region(settings, optional.get("changed_region", "mask"))
        require_free("dreamomni", settings.name)
        run = make_job(settings, dataset, vlm=vlm, vae=optional.get("vae")).run()
        name = publish_network(run)
        return io.NodeOutput(name, run)


NODES = [TrainLoRA, TrainDreamOmni]

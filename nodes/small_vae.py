"""Small VAEs for DreamOmni networks: trained from pictures, and opened again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..dit.dreamomni.vae import SmallVAEConfig
from ..model_loaders.dreamomni_vae import open_vae
from ..model_loaders.paths import model_folder, model_folder_names
from ..training.config import one_of
from ..training.dataset import EditDataset
from ..training.families.dreamomni_setup import LATENT, read_latent
from ..training.presets import vae_run
from .fingerprints import model_folder_state
from .schema import node_input, node_schema
from .training_folders import CONTINUE, chosen_name
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
from .training_results import publish_export, require_free, result_state
from .types import CATEGORY

FOLDER = "dreamomni_vae"
NEW = "a new one"
SIZES = SmallVAEConfig()
DOWNSCALES = ("4", "8")
USUAL = {
    "steps": "4000",
    "learning_rate": "1e-3",
    "batch_size": "16",
    "gradient_accumulation": "1",
    "resolution": "128",
}
"""What a 0 stands for, as tooltips say it."""
WIDEST = 3
"""The narrowest resolution has at most this many times the channels of the full one; chosen."""


def open_small_vae(folder: Path) -> Any:
    """ComfyUI's VAE around the small VAE in `folder`; raises when a part is missing."""
    if not (folder / LATENT).is_file():
        raise FileNotFoundError(
            f"{folder} has no {LATENT}, so it is no small VAE; choose a folder that 'Train Small VAE' made, "
            "with all of its files"
        )
    vae = open_vae(folder.parent, folder.name, read_latent(folder))
    vae.small_vae_folder = folder
    return vae


def small_vae_base(vae: Any) -> dict[str, str]:
    """What a DreamOmni run needs to know of a connected VAE: the folder of a small one, else nothing."""
    folder = getattr(vae, "small_vae_folder", None)
    return {"vae": str(folder)} if folder is not None else {}


def new_sizes(downscale: str, latent_channels: int, width: int) -> dict[str, str | int | float | bool]:
    """Options of a new VAE."""
    one_of("downscale", str(downscale), DOWNSCALES)
    return {
        "downscale": int(downscale),
        "latent_channels": latent_channels,
        "width": width,
        "max_width": WIDEST * width,
    }


class TrainVAE(io.ComfyNode):
    """Trains a small VAE on the pictures of a dataset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniTrainVAE",
            display_name="Train Small VAE",
            category=STAGE_CATEGORY,
            description="Trains a small VAE on the target pictures of a dataset, for DreamOmni networks. "
            "Connect the result to Train DreamOmni.",
            search_aliases=["autoencoder", "train vae", "latent space"],
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                dataset_input(),
                name_input("my-vae"),
                node_input(
                    io.Combo,
                    "downscale",
                    options=list(DOWNSCALES),
                    default=str(SIZES.downscale),
                    tooltip="Pixels per latent cell and side.",
                ),
                node_input(
                    io.Int,
                    "latent_channels",
                    default=SIZES.latent_channels,
                    min=1,
                    max=64,
                    tooltip="Numbers per latent cell: more keep more detail and are harder to generate.",
                ),
                node_input(
                    io.Int,
                    "width",
                    default=SIZES.width,
                    min=8,
                    max=256,
                    step=8,
                    tooltip="Channels at full resolution, doubled at each halving up to three times this.",
                ),
                node_input(
                    io.Combo,
                    "start",
                    options=[NEW, *model_folder_names(FOLDER)],
                    default=NEW,
                    optional=True,
                    tooltip="Train a new one of the sizes above, or go on from a trained one and its sizes.",
                ),
                *override_inputs(USUAL),
                resume_input(),
            ],
            outputs=[
                *run_outputs("vae_name", "Folder in models/dreamomni_vae."),
                io.Vae.Output("vae", display_name="vae", tooltip="The trained VAE."),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        start: str | None = NEW,
        run_name: str | None = None,
        resume: str | None = CONTINUE,
        **_: object,
    ) -> str:
        return f"{model_folder_state(FOLDER, start)} {result_state(FOLDER, run_name, resume)}"

    @classmethod
    def execute(
        cls,
        dataset: EditDataset,
        run_name: str,
        downscale: str,
        latent_channels: int,
        width: int,
        start: str = NEW,
        **optional: Any,
    ) -> io.NodeOutput:
        settings = vae_run(
            name=chosen_name(run_name, optional.get("resume", CONTINUE)),
            start="" if start == NEW else str(model_folder(FOLDER, start)),
            options=new_sizes(downscale, latent_channels, width),
            chosen=chosen_overrides(optional),
            seed=optional.get("seed", 0),
        )
        require_free(FOLDER, settings.name)
        run = make_job(settings, dataset).run()
        name = publish_export(run, FOLDER)
        return io.NodeOutput(name, run, open_small_vae(model_folder(FOLDER, name)))


class LoadVAE(io.ComfyNode):
    """Opens a small VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniLoadVAE",
            display_name="Load Small VAE",
            category=f"{CATEGORY}/load",
            description="Opens a small VAE that Train Small VAE made. Stock VAEs are opened by Load VAE.",
            search_aliases=["autoencoder", "vae loader"],
            inputs=[
                node_input(
                    io.Combo,
                    "vae_name",
                    options=model_folder_names(FOLDER),
                    tooltip="A folder in models/dreamomni_vae.",
                )
            ],
            outputs=[
                io.Vae.Output("vae", display_name="vae", tooltip="For Train DreamOmni, encode, decode.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, vae_name: str | None = None, **_: object) -> str:
        return model_folder_state(FOLDER, vae_name)

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        return io.NodeOutput(open_small_vae(model_folder(FOLDER, vae_name)))


NODES = [TrainVAE, LoadVAE]

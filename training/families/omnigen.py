"""OmniGen: LoRAs on the attention projections, or all weights at small scale.

B batch, C channels, H W latent grid, L prefix tokens. Trained on the network inference uses; its prompts come
from the processor inference uses. Dropping caption and references together puts `<cfg>` in their place, as
the authors do; dropping the caption alone trains the picture branch of guidance, which they leave untrained.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...dit.dreamomni.latent import LatentSpec
from ...dit.omnigen.blocks import DecoderLayer
from ...dit.omnigen.folder import find_files, network_weights, read_config
from ...dit.omnigen.network import OmniGenNetwork
from ...dit.omnigen.prefix import make_prefix, sequence_from_tensor
from ...dit.omnigen.prompt import UNCONDITIONAL_PROMPT
from ..config import RunConfig
from ..files import write_tensors
from ..frozen import FrozenBuilder
from .base import Batch, EncodePlan, Family

LORA_TARGETS = ("self_attn.qkv_proj", "self_attn.o_proj")
WIDE = ("x_embedder", "input_x_embedder", "time_token", "t_embedder", "final_layer")


class OmniGenFamily(Family):
    """The base is `config.base["transformer"]`, an OmniGen folder or a file in one."""

    name = "omnigen"
    base_folder = "omnigen"
    trains_image_lora = True
    drops_condition = True
    lora_prefix = "diffusion_model."
    prompt_holds_references = True

    def encode_plan(self, config: RunConfig) -> EncodePlan:
        """VAE latents and token ids; an edit's source gets the target's size, as the weighting needs."""
        return EncodePlan(
            image_encoding="vae",
            prompt_encoding="processor",
            size_multiple=16,
            prompt_sees_images=True,
            source_follows_target=True,
            dropped_caption=UNCONDITIONAL_PROMPT,
        )

    def latent_space(self, config: RunConfig) -> LatentSpec:
        """SDXL's VAE."""
        return LatentSpec(kind="sdxl", channels=4, scale=0.13025, shift=0.0)

    def load_network(self, config: RunConfig, device: torch.device) -> nn.Module:
        """The network with the folder's weights: frozen for a LoRA, fp32 and trainable without.

        Raises FileNotFoundError for a missing folder, ValueError for weights that are not OmniGen's.
        """
        path = Path(config.base.get("transformer", ""))
        if not config.base.get("transformer") or not path.exists():
            raise FileNotFoundError(f"no base model {str(path)!r}; choose a folder of models/omnigen")
        files = find_files(path if path.is_dir() else path.parent)
        shape = read_config(files.config)
        tensors: dict[str, Tensor] = {}
        for file in files.weights:
            tensors.update(load_file(file))
        weights = network_weights(tensors, shape)
        network = OmniGenNetwork(shape, device="meta")
        if config.adapter is None:
            wide = {name: tensor.float() for name, tensor in weights.items()}
            network.load_state_dict(wide, strict=True, assign=True)
            return network.to(device).requires_grad_(True)
        builder = FrozenBuilder(network, config.memory, device, wide=WIDE)
        for name in list(weights):
            builder.add(name, weights.pop(name))
        builder.finish(path.name)
        return network

    def prompt_part(self, config: RunConfig) -> str:
        """Words and the slots of the pictures."""
        return "ids"

    def adapter_targets(self, config: RunConfig) -> list[str]:
        """The authors' targets, attention's projections."""
        return list(LORA_TARGETS)

    def block_classes(self, network: nn.Module) -> tuple[type[nn.Module], ...]:
        """The decoder layers."""
        return (DecoderLayer,)

    def predict_velocity(self, network: nn.Module, batch: Batch, noisy: Tensor, sigmas: Tensor) -> Tensor:
        """noise - data (B, C, H, W); each item under its own prefix, items of equal layout run together."""
        assert isinstance(network, OmniGenNetwork)
        references: list[Tensor] = batch.conditions["references"]
        patch = network.config.patch_size
        prefixes = []
        for item, ids in enumerate(batch.conditions["prompt"]["ids"]):
            shown = used_references(ids, [reference[item][None] for reference in references])
            sizes = [(latent.shape[-2] // patch, latent.shape[-1] // patch) for latent in shown]
            prefixes.append(make_prefix(sequence_from_tensor(ids, sizes), shown))
        return network.velocity(noisy, sigmas, prefixes)

    def metadata(self, config: RunConfig) -> dict[str, str]:
        """The architecture."""
        return {"modelspec.architecture": "omnigen-v1" + ("/lora" if config.adapter is not None else "")}

    def export_full(
        self,
        network: nn.Module,
        weights: Mapping[str, Tensor],
        folder: Path,
        metadata: Mapping[str, str],
        config: RunConfig,
    ) -> list[Path]:
        """model.safetensors in bf16 under the official names, with the base's config and tokenizer files."""
        base = Path(config.base["transformer"])
        files = find_files(base if base.is_dir() else base.parent)
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / "model.safetensors"]
        write_tensors(
            written[0], {name: part.to("cpu", torch.bfloat16) for name, part in weights.items()}, metadata
        )
        beside = [files.config, files.tokenizer, files.tokenizer.with_name("tokenizer_config.json")]
        for file in beside:
            if file.is_file():
                (folder / file.name).write_bytes(file.read_bytes())
                written.append(folder / file.name)
        return written


def used_references(ids: Tensor, references: list[Tensor]) -> list[Tensor]:
    """The references, unless dropout took the pictures and no slot of the prompt's `ids` (L,) is below 0."""
    return references if bool((ids < 0).any()) else []

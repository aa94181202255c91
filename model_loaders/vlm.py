"""Vision language models from a folder, kept by ComfyUI's memory management.

A loaded VLM is a light handle: the folder is checked at once, the weights are read when something is
first asked, and ComfyUI's model management moves them, partly or wholly, and frees them like any other model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import comfy.model_management
import comfy.model_patcher

from ..vlm import encoder, generate, inputs, memory, vision
from ..vlm.images import pictures_of
from .encode_cache import PICTURES, FeatureCache, PictureCache
from .vlm_files import VLMFolder, open_vlm_folder
from .vlm_layers import move_buffers, use_castable_layers
from .vlm_quantize import QUANTIZERS, import_bitsandbytes, quantize

PRECISIONS = ("auto", "bf16", "fp16", "fp32", *QUANTIZERS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """Number formats of a VLM: `storage` of its weights, `compute` of everything between."""

    name: str
    storage: torch.dtype
    compute: torch.dtype


def choose_precision(name: str, device: torch.device) -> Precision:
    """The formats `name` means on `device`; raises ValueError for an unknown name.

    fp16 is never chosen by itself: these models overflow in it. Quantised weights start from bf16. Where bf16
    is slow the weights stay bf16 and the computing is done in fp32.
    """
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}; choose one of {', '.join(PRECISIONS)}.")
    fixed = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if name in fixed:
        return Precision(name=name, storage=fixed[name], compute=fixed[name])
    if name == "nf4":
        import_bitsandbytes()
    fast = comfy.model_management.should_use_bf16(device)
    compute = torch.bfloat16 if fast else torch.float32
    return Precision(name=name, storage=torch.bfloat16, compute=compute)


class Holder(nn.Module):
    """Carries the network for ComfyUI's patcher, which writes attributes transformers keeps read-only."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class LoadedVLM:
    """A VLM ready to be asked; what travels on a DREAMOMNI_VLM wire."""

    def __init__(
        self, folder: VLMFolder, precision: str, load_device: torch.device, offload_device: torch.device
    ) -> None:
        self.folder = folder
        self.load_device = load_device
        self.offload_device = offload_device
        self.precision = choose_precision(precision, load_device)
        self.seen: PictureCache = PICTURES

    @property
    def identity(self) -> str:
        """Names the model files and the precision; equal identities give equal answers."""
        return f"{self.folder.identity}-{self.precision.name}"

    @property
    def picture_side(self) -> int:
        """Side of the area in which it is asked about pictures."""
        return self.folder.picture_side

    @cached_property
    def processor(self) -> Any:
        """The folder's own tokenizer, chat template and picture processor."""
        import transformers

        kind = getattr(transformers, self.folder.class_names[1])
        return kind.from_pretrained(self.folder.path, local_files_only=True, trust_remote_code=False)

    @property
    def patcher(self) -> comfy.model_patcher.ModelPatcher | None:
        """What ComfyUI looks for on every wire: the network in its care, None before the weights are read."""
        return vars(self).get("model_patcher")

    @cached_property
    def model_patcher(self) -> comfy.model_patcher.ModelPatcher:
        """The network in ComfyUI's care; reads the weights on first use."""
        network = read_network(self.folder, self.precision, self.load_device)
        return comfy.model_patcher.ModelPatcher(
            Holder(network), load_device=self.load_device, offload_device=self.offload_device
        )

    @property
    def network(self) -> Any:
        """The transformers model, wherever its weights lie."""
        return self.model_patcher.model.network

    def generate_text(
        self,
        text: str,
        images: Sequence[Tensor | Image.Image],
        max_new_tokens: int,
        on_token: Callable[[generate.TokenStream], None] = lambda stream: None,
    ) -> generate.Reply:
        """The greedy answer to one chat turn of pictures and text; of picture batches the first is read."""
        pictures = pictures_of(images)[0]
        request = self.make_ready(inputs.build_inputs(self.processor, text, pictures), max_new_tokens)
        with torch.no_grad(), self.pictures_once():
            return generate.generate_reply(
                self.network, self.processor.tokenizer, request, max_new_tokens, on_token
            )

    def hidden_states(
        self,
        prompt: str,
        images: Sequence[Tensor | Image.Image],
        layer: int = encoder.DEFAULT_LAYER,
        max_tokens: int = encoder.DEFAULT_MAX_TOKENS,
        template: str = encoder.DEFAULT_TEMPLATE,
        cache: FeatureCache | None = None,
    ) -> encoder.VLMFeatures:
        """Hidden states of prompt and pictures, one request per picture of a batch, on the offload device.

        With a cache, requests it holds are not evaluated; what is returned is a copy.
        """
        requests = [
            inputs.build_inputs(self.processor, prompt, pictures, template)
            for pictures in pictures_of(images)
        ]
        for request in requests:
            encoder.check_length(request["input_ids"].shape[1], len(images), max_tokens)
        if cache is None:
            return encoder.join_features([self.features_of(request, layer) for request in requests])
        return encoder.join_features([cache.get(self, request, layer) for request in requests])

    def features_of(self, request: dict[str, Tensor], layer: int) -> encoder.VLMFeatures:
        """Features of one request."""
        grid = request.get("image_grid_thw")
        counts = inputs.tokens_per_image(self.processor, grid) if grid is not None else []
        index = inputs.image_index(request["input_ids"], inputs.image_token_id(self.processor), counts)
        mask = request["attention_mask"].bool()
        ready = self.make_ready(request, 0)
        with torch.no_grad(), self.pictures_once():
            tokens = encoder.encode(self.network, ready, layer)
        target = comfy.model_management.intermediate_device()
        return encoder.VLMFeatures(tokens=tokens.to(target), attention_mask=mask, image_index=index)

    def pictures_once(self) -> AbstractContextManager[None]:
        """Inside the block the vision tower does not run for pictures it has seen."""
        return vision.pictures_from(self.network, partial(self.seen.get, self))

    def make_ready(self, request: dict[str, Tensor], new_tokens: int) -> dict[str, Tensor]:
        """Have ComfyUI make room and load the network; the request on its device."""
        needed = memory.request_memory(
            self.network.config,
            num_tokens=request["input_ids"].shape[1],
            num_patches=len(request.get("pixel_values", ())),
            new_tokens=new_tokens,
            itemsize=self.precision.compute.itemsize,
        )
        comfy.model_management.load_models_gpu([self.model_patcher], memory_required=needed)
        move_buffers(self.network, self.load_device)
        accepted = inputs.accepted_inputs(self.network, request)
        return {name: value.to(self.load_device) for name, value in accepted.items()}


def read_network(folder: VLMFolder, precision: Precision, device: torch.device) -> Any:
    """The folder's model on the CPU, its layers exchanged for ones ComfyUI can offload."""
    import transformers

    kind = getattr(transformers, folder.class_names[0])
    network, report = kind.from_pretrained(
        folder.path,
        output_loading_info=True,
        dtype=precision.storage,
        attn_implementation="sdpa",
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    refuse_missing_weights(folder, report["missing_keys"])
    network.eval().requires_grad_(False)
    use_castable_layers(network, precision.compute)
    if precision.name in QUANTIZERS:
        quantize(network, precision.name, device)
    return network


def refuse_missing_weights(folder: VLMFolder, missing: Iterable[str]) -> None:
    """Raise ValueError for weights the files do not hold; transformers would make them up at random."""
    names = sorted(missing)
    if names:
        raise ValueError(
            f"the weights in {folder.path} lack {len(names)} tensors the model needs "
            f"({', '.join(names[:3])}, ...). Fetch the release's *.safetensors and its index again."
        )


def load_vlm(folder: Path, precision: str = "auto") -> LoadedVLM:
    """A handle on the VLM in `folder`; raises FileNotFoundError or ValueError when it cannot be used."""
    return LoadedVLM(
        open_vlm_folder(folder),
        precision,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.text_encoder_offload_device(),
    )

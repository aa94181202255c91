"""What the VLM node adds to transformers' own `generate`, what a second call costs, the memory held at once.

A random Qwen2.5-VL of 14 blocks, half the depth of a 7B one and far narrower, so what the node adds
weighs more here.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import comfy.model_management as mm
from comfy.model_patcher import ModelPatcher

from ..dit.references import ReferenceSet, Task
from ..model_loaders.vlm import LoadedVLM
from ..model_loaders.vlm_files import open_vlm_folder
from ..nodes import vlm as nodes
from ..vlm.reply import ReplyFormatError
from ..vlm.rewrite import ReplyCache
from .harness import Table, compare
from .random_vlm import build_model, write_vlm

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 14,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
}
NEW_TOKENS = 48
INSTRUCTION = "Replace the bag in the first image with the bag in the second image."
SUFFIX = " It is editing task."
# Not equal to the plain CPU device, so ComfyUI makes room on it as on a card.
CARD, CPU = torch.device("cpu", 0), torch.device("cpu")


def tables() -> list[Table]:
    """All tables of this topic."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder) / "vlm")
        return [node_over_generate(path), second_call(path), memory_at_once(path)]


def write_model(path: Path) -> Path:
    """The random model on disk; it never ends its reply by itself."""
    model = build_model("qwen2_5_vl", **SIZES)
    model.generation_config.eos_token_id = None
    return write_vlm(path, model=model)


def opened(path: Path, device: torch.device | None = None) -> LoadedVLM:
    """The model through our loader, in float32."""
    return LoadedVLM(open_vlm_folder(path), "fp32", device or mm.get_torch_device(), CPU)


def pictures() -> tuple[Tensor, Tensor]:
    """Two pictures of Kontext's square size."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(1, 1024, 1024, 3, generator=generator) for _ in range(2))


def node_over_generate(path: Path) -> Table:
    """Seconds of the node, and of our call without the node, over transformers' documented path."""
    vlm, references = opened(path), ReferenceSet(Task.EDIT, pictures())
    sides = {
        "transformers generate": by_transformers(path, references),
        "LoadedVLM.generate_text": lambda: vlm.generate_text(
            INSTRUCTION + SUFFIX, references.images, NEW_TOKENS
        ),
        "Rewrite Prompt node": lambda: ask_node(vlm, references),
    }
    note = f"{NEW_TOKENS} new tokens, two pictures, greedy; the node also hashes the pictures. Goal: 1.05."
    return compare("VLM node over bare generate", sides, expected=dict.fromkeys(sides, 1.05), note=note)


def by_transformers(path: Path, references: ReferenceSet) -> Callable[[], object]:
    """The documented path on 8-bit pictures, model and processor already loaded."""
    import transformers

    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    model = model.eval().to(mm.get_torch_device())
    processor = transformers.Qwen2_5_VLProcessor.from_pretrained(path)
    images = [Image.fromarray((image[0] * 255).round().byte().numpy()) for image in references.images]
    content = [{"type": "image", "image": image} for image in images]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": INSTRUCTION + SUFFIX}]}]

    def run() -> object:
        inputs = processor.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        inputs = inputs.to(model.device)
        return processor.batch_decode(model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS))

    return run


def ask_node(vlm: LoadedVLM, references: ReferenceSet, fresh: bool = True) -> None:
    """One run of the node; a random model writes no tags, so its reply is refused at the very end."""
    if fresh:
        nodes.REPLIES = ReplyCache()
    with contextlib.suppress(ReplyFormatError), torch.inference_mode():
        nodes.RewritePrompt.execute(references, INSTRUCTION, NEW_TOKENS, vlm=vlm)


def second_call(path: Path) -> Table:
    """Model evaluations of the first and of an identical second run, on handles of their own."""
    references, rows = ReferenceSet(Task.EDIT, pictures()), []
    nodes.REPLIES = ReplyCache()
    for name in ("first", "second, identical"):
        vlm, calls = opened(path), [0]
        with counted(calls):
            ask_node(vlm, references, fresh=False)
        rows.append((name, calls[0]))
    return Table("VLM evaluations of a repeated rewrite", ("run", "evaluations"), tuple(rows), "Goal: 0.")


@contextlib.contextmanager
def counted(calls: list[int]) -> Iterator[None]:
    """Counts forward calls of the model class, which loads nothing by itself."""
    import inspect

    import transformers

    kind: Any = transformers.Qwen2_5_VLForConditionalGeneration
    forward = kind.forward

    def count(self: object, *args: object, **kwargs: object) -> object:
        calls[0] += 1
        return forward(self, *args, **kwargs)

    # transformers reads the signature to learn which inputs the model takes.
    count.__signature__ = inspect.signature(forward)
    kind.forward = count
    try:
        yield
    finally:
        kind.forward = forward


def memory_at_once(path: Path) -> Table:
    """Peak of the weights ComfyUI counts as loaded: VLM, then image model, on a card too small for both."""
    mm.unload_all_models()
    vlm = opened(path, CARD)
    size = vlm.model_patcher.model_size()
    other = ModelPatcher(torch.nn.Linear(4096, size // 4 // 4096, bias=False), CARD, CPU)
    capacity, free_memory = mm.minimum_inference_memory() + int(1.5 * size), mm.get_free_memory
    peaks = []

    def loaded() -> int:
        return sum(model.model_loaded_memory() for model in mm.current_loaded_models)

    def free(_: object = None, torch_free_too: bool = False) -> Any:
        left = capacity - loaded()
        return (left, left) if torch_free_too else left

    mm.get_free_memory = free
    try:
        vlm.generate_text(INSTRUCTION, pictures(), 2)
        peaks.append(loaded())
        mm.load_models_gpu([other])
        peaks.append(loaded())
    finally:
        mm.get_free_memory = free_memory
        mm.unload_all_models()
    megabytes = [value / 2**20 for value in (size, other.model_size(), max(peaks), size + other.model_size())]
    rows = tuple(zip(("VLM", "image model", "peak of both in turn", "their sum"), megabytes, strict=True))
    return Table("Weights loaded at once", ("what", "MB"), rows, "Goal: the larger of the two, not the sum.")

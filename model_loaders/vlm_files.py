"""What a VLM folder must hold, checked before anything large is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..dit.safetensors_files import files_of_index, raw_header
from ..dit.sizes import DEFAULT_SIZE
from ..vlm.families import CLASSES

INDEX = "model.safetensors.index.json"
TAUGHT = "dreamomni.json"
"""What Train Prompt Translator leaves beside the weights: how they were taught."""
# Each line: what is needed, and the sets of files that satisfy it.
NEEDED = (
    ("tokenizer", (("tokenizer.json",), ("vocab.json", "merges.txt"))),
    ("tokenizer settings", (("tokenizer_config.json",),)),
    ("picture processor", (("preprocessor_config.json",), ("processor_config.json",))),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class VLMFolder:
    """A checked VLM folder: where it is, its family and an identity that changes with its files."""

    path: Path
    family: str
    identity: str
    picture_side: int = DEFAULT_SIZE[0]
    """Side of the area in which a prompt translator is asked about pictures."""

    @property
    def class_names(self) -> tuple[str, str]:
        """Names of the transformers classes of model and processor."""
        return CLASSES[self.family]


def open_vlm_folder(folder: Path) -> VLMFolder:
    """Check `folder` (Hugging Face layout) and name it.

    Raises FileNotFoundError naming every missing file, ValueError for another family, an already
    quantised model and for pickled weights.
    """
    config = read_config(folder)
    family = config.get("model_type")
    if family not in CLASSES:
        raise ValueError(
            f"{folder.name} holds a model of the type {family!r}; this node reads Qwen2-VL and Qwen2.5-VL "
            f"({', '.join(CLASSES)}), DreamOmni2's vlm-model among them."
        )
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "an unknown method")
        raise ValueError(
            f"{folder.name} is already quantised ({method}). Load the original bf16 folder and choose the "
            "precision (fp8, int8, nf4) in the node."
        )
    refuse_pickled_adapter(folder)
    weights = weight_files(folder)
    missing = missing_files(folder, weights)
    if missing:
        raise FileNotFoundError(
            f"the VLM folder {folder} is incomplete; missing: {'; '.join(missing)}. "
            "Copy the missing files from the release into it."
        )
    return VLMFolder(
        path=folder,
        family=family,
        identity=folder_identity(folder, weights),
        picture_side=taught_side(folder),
    )


def taught_side(folder: Path) -> int:
    """Side of the area in which a translator of this pack was taught with pictures; Kontext's for other VLMs.

    Raises ValueError when the file that tells it is damaged.
    """
    path = folder / TAUGHT
    if not path.is_file():
        return DEFAULT_SIZE[0]
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told.get("dreamomni.family") != "vlm":
            return DEFAULT_SIZE[0]
        recipe = json.loads(told["dreamomni.recipe"])
        side, references = recipe["stages"][-1]["resolution"], recipe["reference_resolution"]
        return min(side, references or side)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not tell at which size the translator was taught ({error!r}). Queue its training "
            "again to have it written anew, or remove it: the VLM is then shown pictures of one megapixel."
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of `folder`; raises FileNotFoundError or ValueError when it cannot be read."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"the VLM folder {folder} has no config.json; {where_config_is(folder)}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ValueError(f"{path} is not valid JSON ({err}); copy it from the release again.") from err


def where_config_is(folder: Path) -> str:
    """What to do about a folder without config.json, in words for an error message."""
    # A repository fetched whole has the model one level deeper.
    nested = sorted(inner.parent.name for inner in folder.glob("*/config.json"))
    if nested:
        return f"it lies in {' and in '.join(nested)}: move its files up, or move that folder to models/vlm"
    return (
        "it must be a Hugging Face folder of Qwen2-VL or Qwen2.5-VL "
        "(config.json, *.safetensors, tokenizer and processor files)"
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files the folder's index names, or the single one."""
    index = folder / INDEX
    if index.is_file():
        return list(files_of_index(index))
    return [folder / "model.safetensors"]


def refuse_pickled_adapter(folder: Path) -> None:
    """Raise ValueError where transformers would look for a LoRA and find it pickled."""
    if (folder / "adapter_config.json").is_file() and not (folder / "adapter_model.safetensors").is_file():
        raise ValueError(
            f"{folder.name} holds adapter_config.json, but no adapter_model.safetensors; a pickled adapter "
            "may run code when it is read and is not loaded. Download the safetensors version, or move the "
            "adapter's files away."
        )


def missing_files(folder: Path, weights: list[Path]) -> list[str]:
    """What `folder` lacks, in words for an error message."""
    missing = [
        f"{what} ({' or '.join(' + '.join(files) for files in choices)})"
        for what, choices in NEEDED
        if not any(all((folder / name).is_file() for name in files) for files in choices)
    ]
    absent = [path.name for path in weights if not path.is_file()]
    if absent:
        hint = " (pickled .bin weights are not read)" if any(folder.glob("*.bin")) else ""
        missing.append(f"weights {', '.join(absent)}{hint}")
    if not has_chat_template(folder):
        missing.append("chat template (chat_template.json or chat_template.jinja)")
    return missing


def has_chat_template(folder: Path) -> bool:
    """Whether any of the files that may carry a chat template does."""
    if any((folder / name).is_file() for name in ("chat_template.json", "chat_template.jinja")):
        return True
    configs = [folder / "tokenizer_config.json", folder / "processor_config.json"]
    return any(
        "chat_template" in json.loads(path.read_text(encoding="utf-8")) for path in configs if path.is_file()
    )


def folder_identity(folder: Path, weights: list[Path]) -> str:
    """Hash of the folder's small files and of each weight file's header, size and time.

    The weights themselves, many gigabytes, are not read; a file replaced in place changes its time.
    """
    digest = hashlib.blake2b(digest_size=16)
    small = (path for pattern in ("*.json", "*.txt", "*.jinja") for path in folder.glob(pattern))
    for path in sorted(small):
        digest.update(path.name.encode() + path.read_bytes())
    for path in weights:
        state = path.stat()
        digest.update(f"{path.name} {state.st_size} {state.st_mtime_ns}".encode() + raw_header(path))
    return digest.hexdigest()

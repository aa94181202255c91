"""The model folders of the pack's own kinds: registers them with ComfyUI and resolves untrusted names."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

SHIPPED = Path(__file__).resolve().parents[1] / "assets"
"""The model folders that come with the pack; only read."""
ADAPTERS = "loras"
"""In a DreamOmni folder: the LoRAs made for that network."""
FOLDERS = {
    "vlm": {".safetensors", ".json"},
    "omnigen": {".safetensors", ".json"},
    "dreamomni": {".safetensors", ".json"},
    "dreamomni_vae": {".safetensors", ".json"},
}


def register_folders() -> None:
    """Add `models/<key>` beside whatever extra_model_paths.yaml or another pack registered before us."""
    for key, extensions in FOLDERS.items():
        is_new = key not in folder_paths.folder_names_and_paths
        folder_paths.add_model_folder_path(key, os.path.join(folder_paths.models_dir, key))
        paths, known = folder_paths.folder_names_and_paths[key]
        # An empty set lists every file: right for a key that somebody else made so, not for a new one.
        if is_new or known:
            folder_paths.folder_names_and_paths[key] = (paths, set(known) | extensions)
    if SHIPPED.is_dir():
        # Last, so that new models are not saved there and a user's folder of the same name is found first.
        folder_paths.add_model_folder_path("dreamomni", str(SHIPPED))


def model_folder_names(key: str) -> list[str]:
    """Names of the sub-folders of `models/<key>` that hold a config.json or a safetensors file, sorted.

    Hidden ones are left out: a folder that is being written is one until it is whole.
    """
    names = {
        entry.name
        for root in folder_paths.get_folder_paths(key)
        if os.path.isdir(root)
        for entry in Path(root).iterdir()
        if not entry.name.startswith(".")
        and entry.is_dir()
        and (any(entry.glob("*.json")) or any(entry.rglob("*.safetensors")))
    }
    return sorted(names)


def model_folder(key: str, name: str) -> Path:
    """The folder `name` below a root of `key`; raises on an unknown name or one that leaves the root."""
    roots = folder_paths.get_folder_paths(key)
    for root in roots:
        # By name, not by resolved link: many users keep large models elsewhere and link them here.
        base = Path(os.path.abspath(root))
        candidate = Path(os.path.abspath(base / name))
        if name and candidate != base and candidate.is_relative_to(base) and candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"no model folder {name!r} in {', '.join(roots)}; "
        f"found: {', '.join(model_folder_names(key)) or 'none'}. "
        "Put the model in a folder of its own below one of these and press R to refresh."
    )


def model_adapters() -> dict[str, Path]:
    """`<model>/loras/<file>`, with that spelling on every system -> LoRA file inside a DreamOmni folder."""
    return {
        f"{model}/{ADAPTERS}/{path.name}": path
        for model in model_folder_names("dreamomni")
        for path in sorted((model_folder("dreamomni", model) / ADAPTERS).glob("*.safetensors"))
    }

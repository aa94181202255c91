"""Runs the benchmarks: `python bench/run.py [topic] [--out DIR]`, normally through `python dev.py bench`."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_TOPICS = {
    "__init__",
    "ablate",
    "evaluate",
    "harness",
    "memory",
    "networks",
    "random_vlm",
    "run",
    "stock_trainer",
}


def topics() -> list[str]:
    """Every module of this folder that measures something."""
    return sorted(path.stem for path in ROOT.glob("bench/*.py") if path.stem not in NOT_TOPICS)


def takes_model(topic: str) -> bool:
    """Whether the tables of a topic may be made of another model folder; read without loading anything."""
    tree = ast.parse((ROOT / "bench" / f"{topic}.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "tables"]
    return any(given.arg == "model" for node in functions for given in node.args.args)


def load_pack() -> None:
    """Load the tree as package `pack`, with the host behind it on the path."""
    loader = runpy.run_path(str(ROOT / "training" / "pack_loader.py"))
    loader["load_pack"]("pack", __file__)
    places = [os.environ.get("COMFYUI_DIR"), ROOT.parent.parent, ROOT / ".comfyui"]
    host = next((Path(place) for place in places if place and (Path(place) / "comfy_api").is_dir()), None)
    if host is None:
        return
    sys.path.append(str(host))
    import torch

    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()


def main() -> int:
    """Run one topic or all of them, print their tables, and write them to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topic", nargs="?", choices=topics(), help="default: all")
    parser.add_argument("--model", type=Path, help="model folder, for topics that measure one")
    parser.add_argument("--out", type=Path, help="folder for one JSON file and one picture per table")
    chosen = parser.parse_args()
    if chosen.model and chosen.topic and not takes_model(chosen.topic):
        fitting = ", ".join(topic for topic in topics() if takes_model(topic))
        parser.error(
            f"the topic {chosen.topic} measures no model folder; leave --model out, or choose {fitting}"
        )
    load_pack()
    harness = importlib.import_module("pack.bench.harness")
    print(", ".join(f"{name} {value}" for name, value in harness.environment().items()), end="\n\n")
    for topic in [chosen.topic] if chosen.topic else topics():
        measured = importlib.import_module(f"pack.bench.{topic}").tables
        asked = {"model": chosen.model} if takes_model(topic) else {}
        for table in measured(**asked):
            print(harness.as_text(table), flush=True)
            if chosen.out:
                harness.save(table, chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

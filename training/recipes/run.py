"""Script behind `dev.py train-small`; runs as a file, whatever the pack's folder is called."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

PACKAGE = "dreamomni_recipe"
LOADER = Path(__file__).resolve().parents[1] / "pack_loader.py"

if __name__ == "__main__":
    runpy.run_path(str(LOADER))["load_pack"](PACKAGE, __file__)
    command = importlib.import_module(f"{PACKAGE}.training.recipes.command")
    sys.exit(command.main())

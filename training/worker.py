"""Script of the training process: `python worker.py RUN_FOLDER`, alone or under `accelerate launch`.

It runs as a file, whatever the pack's folder is called, and imports no ComfyUI.
"""

from __future__ import annotations

import faulthandler
import importlib
import runpy
import sys
from pathlib import Path

PACKAGE = "dreamomni_worker"
LOADER = Path(__file__).resolve().with_name("pack_loader.py")

if __name__ == "__main__":
    faulthandler.enable()  # a segmentation fault or an abort leaves its place in the log
    runpy.run_path(str(LOADER))["load_pack"](PACKAGE, __file__)
    process = importlib.import_module(f"{PACKAGE}.training.process")
    sys.exit(process.main(Path(sys.argv[1]).resolve()))

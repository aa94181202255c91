"""Script of the training process: `python worker.py RUN_FOLDER`, alone or under `accelerate launch`.

It runs as a file, whatever the pack's folder is called, and imports no ComfyUI.
"""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import sys
from pathlib import Path

PACKAGE = "dreamomni_worker"


def load_pack() -> None:
    """Make the pack importable as a package of our own naming."""
    root = Path(__file__).resolve().parent.parent
    # Python puts this file's folder first on the path, where our modules would hide installed packages.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != root / "training"]
    spec = importlib.util.spec_from_file_location(
        PACKAGE, root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    faulthandler.enable()  # a segmentation fault or an abort leaves its place in the log
    load_pack()
    process = importlib.import_module(f"{PACKAGE}.training.process")
    sys.exit(process.main(Path(sys.argv[1]).resolve()))

"""Loads this tree as a package, for scripts that are started by their file's path.

Such a script cannot import this file: it has no package yet, and its own folder need not be on the path (it
is not in the Python of ComfyUI's portable build for Windows). It runs it by its place with `runpy.run_path`.
Standard library only.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def load_pack(name: str, script: str) -> None:
    """Make the tree importable as package `name`; `script` is the `__file__` of the caller.

    The root never comes onto the path, where our `nodes` would hide ComfyUI's.
    """
    root = Path(__file__).resolve().parent.parent
    # Python puts a script's folder first on the path, where our modules would hide installed packages.
    own = Path(script).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != own]
    spec = importlib.util.spec_from_file_location(
        name, root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

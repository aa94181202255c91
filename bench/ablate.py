"""Runs the ablations; normally through `python dev.py ablate`."""

from __future__ import annotations

import importlib
import sys

from run import load_pack

if __name__ == "__main__":
    load_pack()
    sys.exit(importlib.import_module("pack.training.ablations.command").main())

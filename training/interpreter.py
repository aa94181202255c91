"""This Python once more, for processes of its own."""

from __future__ import annotations

import os
import sys


def same_python() -> tuple[list[str], dict[str, str]]:
    """Command and environment that start this interpreter with the packages it sees itself.

    Portable ComfyUI runs as `python -s`. A child without it would see the user's own packages, perhaps
    another torch; the variable is for what that child starts, such as a launcher's processes.
    """
    if not sys.flags.no_user_site:
        return [sys.executable], dict(os.environ)
    return [sys.executable, "-s"], {**os.environ, "PYTHONNOUSERSITE": "1"}

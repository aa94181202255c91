"""Runs the tests, the parts that can go side by side on two processes."""

from __future__ import annotations

import subprocess

from .browser import find_browser
from .checks import check
from .environment import child_environment, ensure_environment
from .places import ROOT, environment_program

QUICK = "not e2e and not browser"
# pytest's word for "no test was selected", which is no failure of a part of the run.
NOTHING_SELECTED = 5


def run_tests(part: str | None, extra: list[str]) -> int:
    """All tests, or the part `fast`, `e2e` or `browser`; `extra` goes to pytest. Returns an exit code."""
    if part in (None, "browser"):
        find_browser()
    ensure_environment()
    if part is None and check():
        return 1
    if part == "fast":
        return pytest([*side_by_side(), "-m", QUICK, *extra])
    if part is not None:
        return pytest(["-m", part, *extra])
    codes = [pytest([*side_by_side(), "-m", QUICK, *extra]), pytest(["-m", "e2e or browser", *extra])]
    return max(0 if code == NOTHING_SELECTED else code for code in codes)


def side_by_side() -> list[str]:
    """Two processes, each file's tests in one of them."""
    return ["-n", "2", "--dist", "loadfile"]


def pytest(arguments: list[str]) -> int:
    """Exit code of the environment's `pytest`; `python -m pytest` would put the root on sys.path."""
    command = [environment_program("pytest"), "-q", *arguments]
    return subprocess.run(command, cwd=ROOT, env=child_environment()).returncode

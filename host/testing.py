"""Runs the tests, the parts that can go side by side on two processes."""

from __future__ import annotations

from .browser import find_browser
from .checks import check
from .environment import ensure_environment, run_child
from .places import ROOT, environment_program, require_clone

QUICK = "not e2e and not browser"
# pytest's word for "no test was selected", which is no failure of a part of the run.
NOTHING_SELECTED = 5


def run_tests(part: str | None, extra: list[str]) -> int:
    """All tests, or the part `fast`, `e2e` or `browser`; `extra` goes to pytest. Returns an exit code."""
    require_clone()
    if part in (None, "browser"):
        find_browser()
    ensure_environment()
    if part is None and check():
        return 1
    if part == "fast":
        return pytest([*side_by_side(), "-m", QUICK, *extra])
    if part is not None:
        return pytest(["-m", part, *extra])
    quick = pytest([*side_by_side(), "-m", QUICK, *extra])
    return together([quick, pytest(["-m", "e2e or browser", *extra])])


def together(codes: list[int]) -> int:
    """One exit code of all parts; a part that a signal ended, whose code is negative, has failed too."""
    if all(code == NOTHING_SELECTED for code in codes):
        return NOTHING_SELECTED
    failed = [code for code in codes if code not in (0, NOTHING_SELECTED)]
    return 0 if not failed else max(1, *failed)


def side_by_side() -> list[str]:
    """Two processes, each file's tests in one of them."""
    return ["-n", "2", "--dist", "loadfile"]


def pytest(arguments: list[str]) -> int:
    """Exit code of the environment's `pytest`.

    Through Python, as the script `pytest` holds the path of the folder it was made in; with -P, as the root
    on sys.path would put our `nodes` in the place of ComfyUI's.
    """
    return run_child([environment_program("python"), "-P", "-m", "pytest", "-q", *arguments], folder=ROOT)

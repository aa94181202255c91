"""Runs the tests, the parts that can go side by side on two processes."""

from __future__ import annotations

from collections.abc import Mapping

from .browser import find_browser
from .checks import check
from .comfyui import NEWER, ensure_tree
from .environment import ensure_environment, run_child
from .places import PINNED_COMFYUI, ROOT, comfyui_dir, environment_program, require_clone

QUICK = "not e2e and not browser"
IN_HOST = f"host and {QUICK}"
ON_SERVER = "e2e or browser"
# pytest's word for "no test was selected", which is no failure of a part of the run.
NOTHING_SELECTED = 5


def run_tests(part: str | None, extra: list[str]) -> int:
    """All tests, or the part `fast`, `newer`, `e2e` or `browser`; `extra` goes to pytest. The exit code.

    Tests that need a host run once more on a newer ComfyUI, unless one was chosen.
    """
    require_clone()
    if part in (None, "newer", "browser"):
        find_browser()
    ensure_environment()
    if part is None and check():
        return 1
    if part == "fast":
        return pytest([*side_by_side(), "-m", QUICK, *extra])
    if part == "newer":
        return on_newer(extra)
    if part is not None:
        return pytest(["-m", part, *extra])
    codes = [pytest([*side_by_side(), "-m", QUICK, *extra])]
    if comfyui_dir() == PINNED_COMFYUI:
        codes.append(on_newer(extra))
    return together([*codes, pytest(["-m", ON_SERVER, *extra])])


def on_newer(extra: list[str]) -> int:
    """Exit code of the tests that need ComfyUI, on the newer one with the packages it asks for."""
    ensure_tree(environment_program("python"), NEWER)
    print(f"On the newer ComfyUI ({NEWER.package}):", flush=True)
    parts = [*side_by_side(), "-m", IN_HOST], ["-m", ON_SERVER]
    return together([pytest([*part, *extra], NEWER.variables) for part in parts])


def together(codes: list[int]) -> int:
    """One exit code of all parts; a part that a signal ended, whose code is negative, has failed too."""
    if all(code == NOTHING_SELECTED for code in codes):
        return NOTHING_SELECTED
    failed = [code for code in codes if code not in (0, NOTHING_SELECTED)]
    return 0 if not failed else max(1, *failed)


def side_by_side() -> list[str]:
    """Two processes, each file's tests in one of them."""
    return ["-n", "2", "--dist", "loadfile"]


def pytest(arguments: list[str], variables: Mapping[str, str] | None = None) -> int:
    """Exit code of the environment's `pytest`.

    Through Python, as the script `pytest` holds the path of the folder it was made in; with -P, as the root
    on sys.path would put our `nodes` in the place of ComfyUI's.
    """
    command = [environment_program("python"), "-P", "-m", "pytest", "-q", *arguments]
    return run_child(command, folder=ROOT, variables=variables)

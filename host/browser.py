"""The browser that the browser tests drive."""

from __future__ import annotations

import os
import platform
import shutil
import sys

from .places import SetupError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_browser() -> str:
    """Path of Chromium or a relative of it; CHROMIUM names another one."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise SetupError(f"the browser tests need Chromium: {install_hint()} (or set CHROMIUM to its path)")
    return found


def is_ubuntu() -> bool:
    """Whether this is Ubuntu by its own word."""
    try:
        return platform.freedesktop_os_release().get("ID") == "ubuntu"
    except OSError:
        return False


def install_hint() -> str:
    """How to install Chromium here."""
    if sys.platform == "darwin":
        return "brew install --cask chromium"
    if sys.platform == "win32":
        return "winget install Hibbiki.Chromium"
    if is_ubuntu():  # its package chromium is a pointer to a snap
        return "install Google Chrome from google.com/chrome"
    if shutil.which("dnf"):
        return "sudo dnf install chromium"
    if shutil.which("pacman"):
        return "sudo pacman -S chromium"
    return "sudo apt-get install chromium"

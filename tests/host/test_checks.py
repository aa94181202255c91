"""What the type check says: of a wrong type, and when git does not name the source files."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from pack.host import checks, places


def test_why_git_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(places.SetupError, match=r"use a clone\. git says: .*not a git repository"):
        checks.source_files()
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "new.py").touch()
    assert checks.source_files() == ["new.py"]
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(places.SetupError, match=r"git says: .*dubious ownership"):
        checks.source_files()


def test_a_wrong_type_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(places.ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "wrong.py").write_text('number: int = "one"\n')
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    assert checks.check_types() == 1
    printed = "".join(capfd.readouterr())
    assert "wrong.py:1" in printed and "not assignable to `int`" in printed


def test_without_git_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(places.SetupError, match=r"install git and use a clone$"):
        checks.source_files()

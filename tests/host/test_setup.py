"""Fetching the pinned host, its environment and the server's folders, without the network."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
from pack.host import browser, client, comfyui, environment, places, server, testing

ROOT = places.ROOT


FILES = {"main.py": "new", "comfy_api/__init__.py": "", "extra_model_paths.yaml": "elsewhere: /x"}


def make_package(path: Path, tree: comfyui.Tree) -> None:
    files = {f"{tree.inside}/{name}": text for name, text in FILES.items()}
    files[f"{tree.inside.split('/')[0]}/other.py"] = ""
    if path.suffix == ".gz":
        with tarfile.open(path, "w:gz") as archive:
            for name, text in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text)
                archive.addfile(entry, io.BytesIO(text.encode()))
        return
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


@pytest.mark.parametrize(
    ("known", "package"), [(comfyui.PINNED, "package.whl"), (comfyui.NEWER, "package.tar.gz")]
)
def test_unpacking_takes_the_tree_alone_and_replaces_an_old_one(
    tmp_path: Path, known: comfyui.Tree, package: str
) -> None:
    tree = dataclasses.replace(known, folder=tmp_path / "comfyui")
    make_package(tmp_path / package, tree)
    tree.folder.mkdir()
    (tree.folder / "old.py").touch()
    comfyui.unpack(tmp_path / package, tree)
    found = {str(path.relative_to(tree.folder)) for path in tree.folder.rglob("*.py")}
    assert found == {"main.py", str(Path("comfy_api/__init__.py"))}
    left = (tree.folder / "extra_model_paths.yaml").exists()
    assert left == ("extra_model_paths.yaml" not in tree.left_out)
    assert {path.name for path in tmp_path.iterdir()} == {package, "comfyui"}


def test_a_tree_is_there_once_it_is_whole_and_still_the_one_that_is_wanted(tmp_path: Path) -> None:
    tree = dataclasses.replace(comfyui.NEWER, folder=tmp_path)
    assert not tree.is_there
    (tmp_path / comfyui.STAMP).write_text(tree.stamp)
    assert tree.is_there and not dataclasses.replace(tree, extras=("simpleeval==1.0.9",)).is_there
    assert comfyui.PINNED.stamp == comfyui.PINNED.sha256


@pytest.mark.parametrize("chosen", [False, True])
def test_tests_that_need_a_host_run_on_the_newer_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: bool
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    def run_child(command: list, folder: Path, variables: dict[str, str] | None = None) -> int:
        started.append((list(map(str, command)), variables or {}))
        return 0

    monkeypatch.setattr(testing, "run_child", run_child)
    for name in ("find_browser", "ensure_environment", "check"):
        monkeypatch.setattr(testing, name, lambda: 0)
    monkeypatch.setattr(testing, "ensure_tree", lambda python, tree: None)
    monkeypatch.setattr(testing, "comfyui_dir", lambda: tmp_path if chosen else places.PINNED_COMFYUI)
    assert testing.run_tests(None, ["-x"]) == 0
    newer = {"COMFYUI_DIR": str(comfyui.NEWER.folder), "PYTHONPATH": str(comfyui.NEWER.packages)}
    assert [variables for _, variables in started if variables] == ([] if chosen else [newer, newer])
    marks = [command[command.index("-m", 4) + 1] for command, _ in started]
    here, on_newer = [testing.QUICK, testing.ON_SERVER], [testing.IN_HOST, testing.ON_SERVER]
    assert marks == (here if chosen else [here[0], *on_newer, here[1]])
    assert all(command[-1] == "-x" for command, _ in started)


def test_a_package_with_another_hash_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "package.whl"
    file.write_bytes(b"something else")
    with pytest.raises(places.SetupError, match="expected 0000; nothing of it was used"):
        comfyui.check_hash(file, "0000")
    comfyui.check_hash(file, hashlib.sha256(b"something else").hexdigest())


def test_a_folder_without_comfyui_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    with pytest.raises(places.SetupError, match="no ComfyUI is there"):
        places.comfyui_dir()


def test_another_host_decides_about_its_own_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "comfy_api").mkdir()
    (tmp_path / "requirements.txt").write_text("comfyui-frontend-package==9.9\nNumPy>=1.25\nSQLAlchemy\n")
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    kept = environment.constraints_for_host().splitlines()
    names = {environment.package_name(line) for line in kept}
    assert "pytest" in names
    assert not names & {"numpy", "sqlalchemy", "comfyui-frontend-package", "comfyui-workflow-templates"}
    assert environment.environment_dir().name == ".venv-host"


def test_the_newer_tree_shares_the_environment_and_brings_what_it_needs_beside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (places, environment):
        monkeypatch.setattr(module, "comfyui_dir", lambda: comfyui.NEWER.folder)
    assert places.required_comfyui() == places.PINNED_COMFYUI
    assert environment.environment_dir().name == ".venv"
    assert environment.constraints_for_host().splitlines() == environment.CONSTRAINTS.read_text().splitlines()
    variables = environment.child_environment()
    assert variables["COMFYUI_DIR"] == str(comfyui.NEWER.folder)
    assert variables["PYTHONPATH"] == str(comfyui.NEWER.packages)


def test_every_requirement_is_frozen() -> None:
    frozen = {environment.package_name(line) for line in environment.CONSTRAINTS.read_text().splitlines()}
    for file in environment.REQUIREMENTS:
        wanted = {environment.package_name(line) for line in file.read_text().splitlines()} - {""}
        assert wanted <= frozen, f"{file.name}: {sorted(wanted - frozen)} are not in constraints.txt"


def test_the_pack_changes_no_torch_of_the_user() -> None:
    wanted = {environment.package_name(line) for line in (ROOT / "requirements.txt").read_text().splitlines()}
    assert not wanted & {"torch", "torchvision", "torchaudio", "numpy"}


def test_a_linked_pack_is_linked_anew_when_it_leads_elsewhere(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        server.link_folder(tmp_path / name, tmp_path / "base" / "link")
        assert (tmp_path / "base" / "link").resolve() == (tmp_path / name).resolve()


def test_a_base_folder_skips_the_first_run_dialog_and_keeps_settings(tmp_path: Path) -> None:
    server.prepare_base(tmp_path)
    settings = tmp_path / "user" / "default" / "comfy.settings.json"
    assert json.loads(settings.read_text()) == {"Comfy.TutorialCompleted": True}
    settings.write_text("{}")
    server.prepare_base(tmp_path)
    assert settings.read_text() == "{}"
    assert (tmp_path / "custom_nodes" / places.PACK_FOLDER / "__init__.py").is_file()


@pytest.mark.parametrize(
    ("codes", "together"),
    [([0, 0], 0), ([0, 5], 0), ([5, 5], 5), ([0, -9], 1), ([-9, 0], 1), ([1, -11], 1), ([2, 0], 2)],
)
def test_a_part_that_failed_or_was_killed_fails_the_whole(codes: list[int], together: int) -> None:
    assert testing.together(codes) == together


WHERE = f"""
import pathlib, sys

def test_the_root_is_not_on_the_path():
    assert {str(ROOT)!r} not in [str(pathlib.Path(place).absolute()) for place in sys.path]
"""


@pytest.mark.parametrize("way", [[], ["-n", "2", "--dist", "loadfile"]])
def test_tests_run_without_the_environments_scripts_and_without_the_root_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: list[str]
) -> None:
    """The scripts of an environment that was moved with its folder lead to a Python that is gone."""
    programs = {"python": Path(sys.executable)}
    monkeypatch.setattr(testing, "environment_program", lambda name: programs.get(name, tmp_path / name))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "test_where.py").write_text(WHERE)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    options = ["-c", tmp_path / "pytest.ini", "-p", "no:cacheprovider", tmp_path / "test_where.py"]
    assert testing.pytest([*way, *map(str, options)]) == 0


@pytest.mark.parametrize("command", ["check", "test", "demo"])
def test_a_copy_without_tests_says_so_before_anything_is_made(tmp_path: Path, command: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "host", copy / "host")
    shutil.copyfile(ROOT / "dev.py", copy / "dev.py")
    shutil.copyfile(ROOT / "constraints.txt", copy / "constraints.txt")
    own = {name: value for name, value in os.environ.items() if name != "COMFYUI_DIR"}
    run = [sys.executable, copy / "dev.py", command]
    result = subprocess.run(run, cwd=tmp_path, env=own, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("dev.py: this copy has no tests/; dev.py needs the git clone")
    assert not (copy / ".venv").exists()


CHILD = """
import pathlib, time
pathlib.Path("begun").touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.5)  # longer than Python itself gives a child after Ctrl+C
    pathlib.Path("put away").touch()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_program_that_is_asked_to_end_may_put_things_away(tmp_path: Path) -> None:
    parent = f"""
import importlib.util, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from host.environment import run_child
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
run_child([sys.executable, "-c", {CHILD!r}], folder=Path({str(tmp_path)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", parent])
    end = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < end:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 143
    assert (tmp_path / "put away").exists()


def test_a_proxy_is_not_asked_for_a_server_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as own:
        threading.Thread(target=own.serve_forever, daemon=True).start()
        assert client.Client(f"http://127.0.0.1:{own.server_port}").request("/")
        own.shutdown()


def test_pip_is_tried_where_uv_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list] = []

    def run(command: list, **_: object) -> subprocess.CompletedProcess:
        asked.append(command)
        return subprocess.CompletedProcess(command, int("uv" in command))

    monkeypatch.setattr(environment, "environment_dir", lambda: tmp_path)
    monkeypatch.setattr(environment, "installer", lambda python: ["uv", "pip", "install"])
    monkeypatch.setattr(environment.subprocess, "run", run)
    environment.install(tmp_path / "python", [tmp_path / "wanted.txt"], "")
    assert [command[0] for command in asked] == ["uv", tmp_path / "python"]
    assert asked[0][3:] == asked[1][4:]
    monkeypatch.setattr(environment.subprocess, "run", lambda c, **_: subprocess.CompletedProcess(c, 1))
    with pytest.raises(places.SetupError, match="installing the packages failed"):
        environment.install(tmp_path / "python", [], "")


def test_a_missing_browser_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(places.SetupError, match=r"need Chromium: .+ install"):
        browser.find_browser()


def test_refusals_and_failures_are_told_in_words() -> None:
    answer = {
        "error": {"message": "Prompt outputs failed validation"},
        "node_errors": {
            "3": {"class_type": "KSampler", "errors": [{"message": "Missing input", "details": "model"}]}
        },
    }
    assert client.describe_refusal(json.dumps(answer)) == (
        "Prompt outputs failed validation\nnode 3 (KSampler): Missing input: model"
    )
    assert client.describe_refusal("not json") == "not json"
    details = {"node_type": "VAELoader", "exception_type": "ValueError", "exception_message": "no such file"}
    failed = {"status": {"messages": [["execution_start", {}], ["execution_error", details]]}}
    assert client.describe_failure(failed) == "VAELoader: ValueError: no such file"
    assert client.describe_failure({"status": {"messages": [["execution_success", {}]]}}) == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: command"),
        (["paint"], "invalid choice"),
        (["demo", "--fast"], "unknown: --fast"),
        (["test", "--fast", "--e2e"], "not allowed with"),
    ],
)
def test_wrong_commands_are_refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "dev.py", *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert said in result.stderr


def test_what_is_wrong_is_told_without_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    result = subprocess.run([sys.executable, ROOT / "dev.py", "check"], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("dev.py: COMFYUI_DIR is ")
    assert "Traceback" not in result.stderr

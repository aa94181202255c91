"""What a user is told before anything runs: README's words on installing."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path

import pytest
from pack.host.places import ROOT

PAGES = ROOT / "web" / "docs"
PRODUCT = ("dit", "host", "model_loaders", "nodes", "samplers", "training", "vlm")


def section(title: str) -> str:
    """The text under a heading of README.md, its lines joined."""
    _, _, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition(f"\n## {title}\n")
    assert rest, f"README.md has no section {title!r}"
    return " ".join(rest.partition("\n## ")[0].split())


def test_how_to_keep_transformers_4_is_said_where_pip_would_raise_it() -> None:
    install = section("Install into your ComfyUI")
    assert "pip raises both, transformers to 5" in install
    assert 'add `"transformers<5"` behind `requirements.txt`' in install
    assert '`pip install "transformers<5" "diffusers<0.40"`' in install
    portable = section("Good to know").partition("**Portable ComfyUI on Windows**")[2]
    assert 'with `"transformers<5"` behind it' in portable


def test_files_are_fetched_and_renamed_to_what_the_templates_load() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    fetched = dict(re.findall(r"^hf download (\S+).* --local-dir ComfyUI/models/(\S+)$", text, re.MULTILINE))
    assert fetched.keys() == {"Shitao/OmniGen-v1", "xiabs/DreamOmni2"}
    assert text.count("hf download ") == text.count("--local-dir ComfyUI/models/") == 3
    assert "typed in the folder that holds `ComfyUI`" in section("Install into your ComfyUI")
    loaded = {
        value
        for path in (ROOT / "workflows").glob("*.json")
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]
        for value in node.get("widgets_values") or []
        if isinstance(value, str)
    }
    renamed = dict(re.findall(r"^mv (\S+) (\S+)$", text, re.MULTILINE))
    assert list(renamed) == [
        "vlm/vlm-model",
        "loras/edit_lora/pytorch_lora_weights.safetensors",
        "loras/gen_lora/pytorch_lora_weights.safetensors",
    ]
    assert {path.partition("/")[2] for path in renamed.values()} <= loaded
    assert fetched["Shitao/OmniGen-v1"].partition("/")[2] in loaded


def test_the_sizes_of_a_small_card_are_those_of_the_pages() -> None:
    told = section("Good to know")
    for path, sizes in (
        ("web/docs/DreamOmniLoadVLM.md", ("16.6 GB", "9.4 GB", "6.3 GB")),
        ("web/docs/DreamOmniLoadOmniGen.md", ("1.5 GB",)),
        ("workflows/omnigen-edit.json", ("7.8 GB", "3.9 GB")),
        ("workflows/edit-with-references.json", ("11.9 GB",)),
    ):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert [size for size in sizes if size not in text or size not in told] == []


def test_what_references_cost_is_what_the_benchmarks_count() -> None:
    benchmarks = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    rest = benchmarks.partition("(`reference_cache`)")[2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in rest.splitlines()]
    counted = {row[0]: f"{float(row[4]):.2g} times" for row in rows if len(row) == 8 and row[0] in "135"}
    told = section("Good to know")
    assert f"{counted['1']} as long with one reference" in told
    assert f"{counted['3']} with three, {counted['5']} with five" in told


def version(text: str) -> tuple[int, ...]:
    """A version as numbers, to compare it."""
    return tuple(int(part) for part in text.split("."))


def promised_comfyui() -> str:
    """The least ComfyUI that pyproject.toml asks for."""
    found = re.search(
        r'requires-comfyui = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    )
    assert found is not None
    return found[1]


def texts(file: Path) -> list[str]:
    """Every text in a source file, its parts joined as Python joins them."""
    tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return [node.value for node in tree if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_no_error_asks_for_a_newer_comfyui_than_the_pack_does() -> None:
    files = [file for folder in PRODUCT for file in (ROOT / folder).rglob("*.py")]
    asked = [found for file in files for text in texts(file) for found in asked_versions(text)]
    pages = [
        found for page in PAGES.glob("*.md") for found in asked_versions(page.read_text(encoding="utf-8"))
    ]
    assert asked and pages
    assert max(map(version, asked + pages)) <= version(promised_comfyui())
    assert f"ComfyUI {promised_comfyui()} or newer" in section("Install into your ComfyUI")


def asked_versions(text: str) -> list[str]:
    """The versions of ComfyUI that a text asks for."""
    return re.findall(r"ComfyUI (?:to )?(\d+(?:\.\d+)+) or newer", text)


def test_the_host_of_the_tests_is_told_as_what_it_is() -> None:
    pinned = ROOT / ".comfyui" / "comfyui_version.py"
    if not pinned.is_file():
        pytest.skip("no pinned ComfyUI; run `python dev.py test`")
    (name,) = (text for text in texts(pinned) if re.fullmatch(r"[\d.]+", text))
    checked = section("What was checked, and what was not")
    assert f"a commit shortly before {promised_comfyui()}, which still calls itself {name}" in checked


def test_the_page_of_the_reference_cache_names_its_error_about_the_host() -> None:
    errors = (PAGES / "DreamOmniReferenceCache.md").read_text(encoding="utf-8").partition("## Errors")[2]
    row = next(line for line in errors.splitlines() if "this ComfyUI does not tell which block" in line)
    assert f"Update ComfyUI to {promised_comfyui()} or newer" in row


@pytest.mark.parametrize(
    ("page", "repository"),
    [("DreamOmniLoadVLM", "xiabs/DreamOmni2"), ("DreamOmniLoadOmniGen", "Shitao/OmniGen-v1")],
)
def test_the_pages_of_folder_models_have_the_command_of_the_readme(page: str, repository: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    fetches = [line for line in readme.splitlines() if line.startswith(f"hf download {repository} ")]
    command = next(line for line in fetches if "ComfyUI/models/loras" not in line)
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    assert f"\n{command}\n" in text
    assert portable_download(text) == portable_download(readme)


def portable_download(text: str) -> str:
    """The module that stands for `hf` where ComfyUI brings its own Python."""
    found = re.search(r"`python_embeded\\python\.exe -s -m ([\w.]+)` in\s+place\s+of\s+`hf`", text)
    assert found is not None
    return found[1]


def test_the_portable_command_is_one_that_the_hub_library_has(capsys, monkeypatch) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    module = importlib.import_module(portable_download(readme))
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert 'if __name__ == "__main__":\n    main()' in source
    monkeypatch.setattr("sys.argv", ["hf", "download", "--help"])
    with pytest.raises(SystemExit) as left:
        module.main()
    assert not left.value.code
    shown = capsys.readouterr().out
    assert "--include" in shown and "--local-dir" in shown


def test_gguf_is_told_with_its_loader_and_its_limits() -> None:
    models = section("Models")
    assert "*Unet Loader (GGUF)* of the pack ComfyUI-GGUF in place of *Load Diffusion Model*" in models
    assert "A GGUF cannot be trained on" in models
    assert "nunchaku" in models
    assert "GGUF was only run with a stand-in" in section("What was checked, and what was not")
    page = (PAGES / "DreamOmniLoadKontext.md").read_text(encoding="utf-8")
    assert "Any other loader" not in page
    assert "*Unet Loader (GGUF)*" in page and "nunchaku" in page


def test_the_readme_says_that_the_browser_gives_both_loras_one_name() -> None:
    models = section("Models")
    assert "A browser saves both LoRAs as `pytorch_lora_weights.safetensors`" in models
    assert "rename the first before you fetch the second" in models


def test_the_menu_entry_that_frees_models_is_called_as_the_frontend_calls_it() -> None:
    page = (PAGES / "DreamOmniLoadVLM.md").read_text(encoding="utf-8")
    assert "*Edit > Unload Models*" in page
    frontend = pytest.importorskip("comfyui_frontend_package")
    scripts = (Path(frontend.__file__).parent / "static" / "assets").glob("index-*.js")
    assert any('label:"Unload Models"' in script.read_text(encoding="utf-8") for script in scripts)

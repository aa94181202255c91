"""What a user is told before anything runs: README's words on installing."""

from __future__ import annotations

import json
import re

from pack.host.places import ROOT


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

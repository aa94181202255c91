"""What a user is told before anything runs: README's words on installing."""

from __future__ import annotations

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

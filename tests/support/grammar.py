"""A check of the English of instructions."""

from __future__ import annotations

import re

from pack.training.synthesis.words import article


def grammar_faults(text: str) -> list[str]:
    """What is wrong with an instruction: articles, doubled words, spacing, capitals, open placeholders."""
    faults = []
    for match in re.finditer(r"\b(an?)\s+(?=[\w-])", text, re.IGNORECASE):
        if match[1].lower() != article(text[match.end() :]):
            faults.append(f"article before {text[match.end() :].split()[0]!r}")
    faults += [f"doubled {match[1]!r}" for match in re.finditer(r"\b([A-Za-z]+)\s+\1\b", text, re.IGNORECASE)]
    faults += ["placeholder"] if re.search(r"[{}]|\bNone\b", text) else []
    faults += ["spacing"] if re.search(r"  |\s[.,;:!?]|[.,;:][A-Za-z(]|\( | \)", text) else []
    faults += ["end"] if not re.search(r"[.!?]$", text) else []
    starts = [text[:1], *re.findall(r"[.!?]\s+(\S)", text)]
    faults += ["capital"] if any(letter.isalpha() and not letter.isupper() for letter in starts) else []
    return faults

"""How long files and functions may be."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.test_import_rules import OURS, ROOT

LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def long_functions(text: str) -> list[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = (node for node in ast.walk(ast.parse(text)) if isinstance(node, functions))
    lengths = ((node.name, (node.end_lineno or 0) - node.lineno + 1) for node in found)
    return [f"{name}: {lines}" for name, lines in lengths if lines > LONGEST_FUNCTION]


def our_files() -> list[Path]:
    inside = (path for folder in sorted(OURS) for path in (ROOT / folder).rglob("*.py"))
    return [*inside, *ROOT.glob("*.py"), *(ROOT / "web").rglob("*.js")]


def test_files_and_functions_can_be_read_at_once() -> None:
    files = our_files()
    assert {"dev.py", "test_sizes.py", "live_text.js"} <= {path.name for path in files}
    for path in files:
        text = path.read_text("utf-8")
        assert text.count("\n") <= LONGEST_FILE, f"{path} has too many lines"
        assert path.suffix != ".py" or not long_functions(text), path


def test_a_long_function_is_found() -> None:
    assert long_functions("def f():\n" + "    pass\n" * LONGEST_FUNCTION) == ["f: 61"]
    assert not long_functions("def f():\n" + "    pass\n" * (LONGEST_FUNCTION - 1))

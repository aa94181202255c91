"""Every event that is sent or listened for anywhere is one of the table in `training/events.py`."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from pack.training.events import Event, Outcome, event_line, event_of
from pack.training.report import MARKS, SPOKEN

from tests.training.toy import toy_config, toy_place, toy_trainer

ROOT = Path(__file__).resolve().parents[2]
FIELDS = {
    name: get_type_hints(kind).keys() - {"time"}
    for kind in get_args(Event)
    for name in get_args(get_type_hints(kind)["event"])
}


def strings(node: ast.AST) -> list[str]:
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def sent(tree: ast.AST) -> Iterator[tuple[str, set[str]]]:
    """(name, fields) of each event that is written out as a dict; `outcome` holds any of the Outcomes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            keys = [key.value if isinstance(key, ast.Constant) else "**" for key in node.keys]
            if "event" in keys:
                names = strings(node.values[keys.index("event")]) or get_args(Outcome)
                yield from ((name, set(keys)) for name in names)


def listened(tree: ast.AST) -> Iterator[str]:
    """Names that `event["event"]` is compared with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and ast.unparse(node.left).endswith("['event']"):
            yield from (name for other in node.comparators for name in strings(other))


def faults_in(source: str) -> list[str]:
    tree = ast.parse(source)
    faults = [f"sends {name} with {sorted(got)}" for name, got in sent(tree) if FIELDS.get(name) != got]
    return faults + [f"listens for {name}" for name in listened(tree) if name not in FIELDS]


def sources() -> Iterator[Path]:
    for folder in ("training", "nodes", "bench"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_all_that_is_sent_or_listened_for_is_in_the_table() -> None:
    faults = {str(path.relative_to(ROOT)): faults_in(path.read_text(encoding="utf-8")) for path in sources()}
    assert not {path: found for path, found in faults.items() if found}
    assert {*MARKS, *SPOKEN} <= FIELDS.keys()


def test_all_that_is_in_the_table_is_sent() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sources()]
    assert {name for tree in trees for name, _ in sent(tree)} == FIELDS.keys()


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ('emit({"event": "savd", "step": 1, "folder": "x"})', "sends savd with ['event', 'folder', 'step']"),
        ('emit({"event": "saved", "step": 1})', "sends saved with ['event', 'step']"),
        ('emit({"event": "a" if x else "best_forgotten", "step": 1})', "sends a with ['event', 'step']"),
        ('emit({"event": outcome, "step": 1})', "sends finished with ['event', 'step']"),
        ('if event["event"] in ("step", "stpe"): pass', "listens for stpe"),
    ],
)
def test_what_is_not_in_the_table_is_found(source: str, fault: str) -> None:
    assert fault in faults_in(source)


def test_a_run_says_what_the_table_has(tmp_path: Path) -> None:
    trainer, events = toy_trainer(toy_config(steps=4), toy_place(tmp_path))
    trainer.run()
    assert {"started", "stage", "step", "saved", "exported", "finished"} <= {e["event"] for e in events}
    for event in events:
        assert event.keys() == FIELDS[event["event"]], event


def test_an_event_is_the_line_it_always_was() -> None:
    event: Event = {"event": "rewound", "step": 4, "from": 9, "reason": "“wild”"}
    line = '{"event": "rewound", "step": 4, "from": 9, "reason": "\\u201cwild\\u201d", "time": 1.5}\n'
    assert event_line({**event, "time": 1.5}) == line
    assert event_of(line) == {**event, "time": 1.5}
    odd = event_line({"event": "validation", "step": 2, "loss": math.nan, "best": False})
    assert odd == '{"event": "validation", "step": 2, "loss": "nan", "best": false}\n'


@pytest.mark.parametrize("line", ["", "Loading weights\n", "3\n", "[1]", '{"loss": 1}', '{"event": "st'])
def test_what_is_no_event_is_passed_over(line: str) -> None:
    assert event_of(line) is None

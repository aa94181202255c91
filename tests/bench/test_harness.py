"""The benchmark's table, timing and files."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pack.bench import run
from pack.bench.harness import Table, as_text, compare, save
from pack.bench.run import ROOT, takes_model, topics


def test_sides_alternate_and_ratios_are_against_the_first() -> None:
    order = []

    def side(name: str, pause: float) -> None:
        order.append(name)
        time.sleep(pause)

    table = compare(
        "pauses", {"short": lambda: side("short", 0.05), "long": lambda: side("long", 0.15)}, rounds=3,
        expected={"long": 3.0},
    )  # fmt: skip
    assert order == ["short", "long"] * 4
    assert table.column("median ratio")[0] == 1
    assert table.column("median ratio")[1] > 1.5
    assert table.column("expected ratio")[1] == 3.0


def test_a_table_is_printed_and_saved_with_its_environment(tmp_path: Path) -> None:
    table = Table(
        "Two rows", ("side", "value"), (("a", 1.23456), ("b", 20.0)), "what it shows", ("side", "value")
    )
    assert as_text(table).splitlines() == [
        "## Two rows",
        "side  value",
        "a     1.235",
        "b     20",
        "what it shows",
    ]
    saved = json.loads(save(table, tmp_path / "out").read_text())
    assert saved["rows"] == [["a", 1.23456], ["b", 20.0]]
    assert {"python", "torch", "cpu", "gpu"} <= saved["environment"].keys()
    assert (tmp_path / "out" / "two-rows.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("rows", "chart", "message"),
    [((("a",),), None, "2 columns, but a row holds 1"), ((), ("side", "speed"), "no column 'speed' to draw")],
)
def test_malformed_tables_are_refused(rows: tuple, chart: tuple | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Table("bad", ("side", "value"), rows, chart=chart)


@pytest.mark.host
@pytest.mark.parametrize("topic", topics())
def test_every_topic_offered_loads_and_has_tables(topic: str) -> None:
    tables = importlib.import_module(f"pack.bench.{topic}").tables
    parameters = inspect.signature(tables).parameters
    assert takes_model(topic) == ("model" in parameters)
    assert all(given.default is not inspect.Parameter.empty for given in parameters.values())


def test_a_model_is_refused_by_a_topic_that_takes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "solvers", "--model", str(tmp_path)])
    monkeypatch.setattr(run, "load_pack", lambda: pytest.fail("the topic was begun"))
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert (
        "the topic solvers measures no model folder; leave --model out, or choose seen_scenes, small_solvers"
        in told
    )


def test_a_model_reaches_the_topic_that_takes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    topic = SimpleNamespace(tables=lambda model=None: asked.append(model) or [])
    monkeypatch.setitem(sys.modules, "pack.bench.small_solvers", topic)
    monkeypatch.setattr(run, "load_pack", lambda: None)
    monkeypatch.setattr(sys, "argv", ["run.py", "small_solvers", "--model", str(tmp_path)])
    assert run.main() == 0
    assert asked == [tmp_path]


def test_benchmarks_need_nothing_of_the_tests() -> None:
    for path in (ROOT / "bench").rglob("*.py"):
        assert "tests" not in path.read_text(encoding="utf-8"), path.name

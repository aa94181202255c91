"""The benchmark's table, timing and files."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from pack.bench.harness import Table, as_text, compare, save
from pack.bench.run import ROOT, topics


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


def test_every_topic_offered_has_tables() -> None:
    assert topics()
    for topic in topics():
        assert "\ndef tables(" in (ROOT / "bench" / f"{topic}.py").read_text(encoding="utf-8"), topic

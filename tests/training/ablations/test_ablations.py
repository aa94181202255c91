"""The ablations: what differs between runs, what is measured of them, and that nothing is done twice."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pack.dit.dreamomni.storage import read_index
from pack.training.ablations import command
from pack.training.ablations.carry_out import Workplace, all_results, finish_free, known_result
from pack.training.ablations.intervals import mean_of, speed, steps_to
from pack.training.ablations.kinds import EDIT_TASKS, KINDS, TAUGHT, taught
from pack.training.ablations.measures import HeldOut, is_copy, judged_cases, tells_copies
from pack.training.ablations.report import mean_curve, table, write_report
from pack.training.ablations.variants import (
    EXPERIMENTS,
    NO_BLOCK_SKIPS,
    NO_SKIPS,
    REFERENCE,
    SCHEMES,
    SWITCH,
    UNWEIGHTED,
    Budget,
    Job,
    jobs_of,
)
from pack.training.families.dreamomni_setup import network_config
from pack.training.launch import TrainingError
from pack.training.recipes.loading import load_trained
from pack.training.synthesis.samples import Synthesizer

from tests.training.recipes.conftest import one_thread  # noqa: F401 (a fixture)
from tests.training.recipes.small_budget import TINY_NETWORK, TINY_VLM

TINY = Budget(
    steps=2,
    batch_size=4,
    lora_steps=2,
    lora_batch_size=4,
    lora_samples=6,
    measured=2,
    lora_measured=1,
    held_out=6,
    cases=1,
    evaluations=1,
    network=TINY_NETWORK,
    vlm=TINY_VLM,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Everything of (c), one seed, done."""
    place = Workplace(tmp_path_factory.mktemp("ablations"), TINY)
    finish_free(place, jobs_of("c", 1, TINY))
    return place


def test_a_run_differs_from_the_reference_in_one_thing_only(tmp_path: Path) -> None:
    (vlm := tmp_path / "vlm").mkdir()
    (vlm / "config.json").write_text(json.dumps({"hidden_size": 64}))
    configs = {
        variant.name: Job(variant=variant, seed=0, budget=TINY).config(vlm)
        for variant in (REFERENCE, NO_BLOCK_SKIPS, NO_SKIPS, UNWEIGHTED)
    }
    plain = configs.pop("reference")
    for name, config in configs.items():
        assert config.stages == plain.stages and config.seed == plain.seed
        assert (config.options == plain.options) == (name == UNWEIGHTED.name)
        assert (config.objective == plain.objective) == (name != UNWEIGHTED.name)
    assert network_config(plain).block_skips and network_config(plain).source_exit_skips
    bare = network_config(configs[NO_SKIPS.name])
    assert (bare.block_skips, bare.conv_skips, bare.source_exit_skips) == (False, False, False)
    assert plain.optimizer.schedule == "constant_with_warmup"


def test_the_runs_of_all_experiments_share_the_reference() -> None:
    jobs = jobs_of("acd", 3, TINY)
    assert len(jobs) == 3 * 6 == len({job.name for job in jobs})
    assert [job.variant.positions for job in jobs_of("b", 1, TINY)] == [
        "index+offset", "index", "offset", "none",
    ]  # fmt: skip
    assert [job.name for job in jobs_of("e", 1, TINY)] == [
        "edit-adapter-seed-0", "generate-adapter-seed-0", "no-adapter-seed-0",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="a curve of 3 points needs as many steps, 2 are given"):
        Budget(steps=2, measured=3)


def test_longer_loras_see_more_samples() -> None:
    told = command.budget_of(command.parser().parse_args(["--lora-budget", "300", "--cases", "7"]))
    assert told == Budget(lora_steps=300, lora_samples=300 * told.lora_batch_size, cases=7)
    assert command.budget_of(command.parser().parse_args([])) == Budget(), "the defaults are the same in both"


def test_finished_runs_are_measured_judged_and_not_done_again(place: Workplace, tmp_path: Path) -> None:
    jobs = jobs_of("c", 1, TINY)
    results = all_results(place, jobs)
    for result in results.values():
        assert [point["step"] for point in result["curve"]] == [1, 2]
        tally = result["judged"]["edit"]
        assert tally["count"] == 2 * len(EDIT_TASKS) and 0 < tally["could_copy"] <= tally["count"]
    first = place.of(jobs[0]) / "result.json"
    before = first.stat().st_mtime_ns
    finish_free(place, jobs)
    assert first.stat().st_mtime_ns == before
    with pytest.raises(TrainingError, match=r"1 of 1 runs are not finished \(edits-only-seed-0 first\)"):
        all_results(place, [job for job in jobs_of("d", 1, TINY) if job.variant.mixture == "edit"])
    longer_loras = dataclasses.replace(TINY, lora_steps=3)
    assert known_result(place, Job(variant=REFERENCE, seed=0, budget=longer_loras)) is not None
    other = Workplace(place.folder, Budget(steps=3, measured=2))
    with pytest.raises(ValueError, match="holds this run with another budget, model or other settings"):
        known_result(other, Job(variant=REFERENCE, seed=0, budget=other.budget))
    text = write_report("c", results, TINY, 1, tmp_path)
    assert "| changed region not weighted | edits |" in text and (tmp_path / "ablation-c.png").is_file()


def test_the_error_is_unweighted_and_the_same_twice(place: Workplace) -> None:
    model = place.of(jobs_of("c", 1, TINY)[0]) / "run" / "exports" / "last"
    held, pair = HeldOut(TINY.recipe(0), KINDS["edit"], 6), load_trained(model)
    error = held.error(pair)
    assert error == held.error(pair) and 0 < error.everywhere < error.changed
    with torch.no_grad():
        pair.dit.exit.out.bias += 0.5
    assert held.error(pair).everywhere != pytest.approx(error.everywhere, rel=1e-3)


def test_positions_are_taught_to_a_finished_model(place: Workplace, tmp_path: Path) -> None:
    base = place.of(jobs_of("c", 1, TINY)[0]) / "run" / "exports" / "last"
    mine = Workplace(tmp_path, TINY, base)
    job = Job(variant=SCHEMES[-1], seed=0, budget=TINY)
    finish_free(mine, [job])
    model = mine.of(job) / "model"
    assert read_index(model).network.reference_positions == "none"
    assert read_index(base).network.reference_positions == "index+offset"
    loras = {path.name: path.read_bytes() for path in (model / "loras").iterdir()}
    assert sorted(loras) == ["edit.safetensors", "generate.safetensors"] and len(set(loras.values())) == 1
    judged = all_results(mine, [job])[job.name]["judged"]
    assert {kind: tally["count"] for kind, tally in judged.items()} == {"two_edit": 2, "two_sheets": 1}
    another = Workplace(tmp_path, TINY, model)
    (model / "dit.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match="holds this run with another budget, model or other settings"):
        all_results(another, [job])
    with pytest.raises(ValueError, match=r"name its folder with --model, or train one first"):
        Workplace(tmp_path, TINY, tmp_path / "none").base_model()


def test_an_adapter_is_asked_its_own_requests_and_the_other_ones(place: Workplace, tmp_path: Path) -> None:
    base = place.of(jobs_of("c", 1, TINY)[0]) / "run" / "exports" / "last"
    mine = Workplace(tmp_path, TINY, base)
    edit, _, bare = SWITCH
    jobs = [Job(variant=variant, seed=0, budget=TINY) for variant in (edit, bare)]
    finish_free(mine, jobs)
    results = all_results(mine, jobs)
    for job in jobs:
        tallies = results[job.name]["judged"]
        assert {kind: tally["count"] for kind, tally in tallies.items()} == {"reference": 6, "sheets": 2}
        assert [point["step"] for point in results[job.name]["curve"]] == [TINY.lora_steps]
    assert not (mine.of(jobs[1]) / "model" / "loras").exists() and not (mine.of(jobs[1]) / "run").exists()
    adapted, plain = (results[job.name]["curve"][0]["reference"] for job in jobs)
    assert adapted != plain
    assert plain == dataclasses.asdict(
        HeldOut(TINY.recipe(0), KINDS["reference"], 6).error(load_trained(base))
    )


def test_position_schemes_are_taught_two_references_and_nothing_else() -> None:
    recipe = TINY.recipe(0)
    for config in (taught(recipe, "all"), *(KINDS[name].synthesis(recipe) for name in TAUGHT["all"])):
        synthesizer = Synthesizer(config)
        assert {len(synthesizer.plan(index).references) for index in range(40)} == {2}
    edits = sum(weight for task, weight in taught(recipe, "all").tasks if task != "reference_generation")
    assert edits == pytest.approx(1) and dict(taught(recipe, "all").tasks)["reference_generation"] == 1


def test_a_copy_is_what_the_judge_would_take_for_the_source() -> None:
    config = TINY.recipe(0).synthesis(EDIT_TASKS, split="test")
    asked = judged_cases(config, "recolour", "several", 6)
    # Orange to yellow is so small a change that the target itself passes for a copy.
    case = next(case for case in asked if tells_copies(case))
    source, target = case.sample.source, case.sample.target
    assert is_copy(case, source) and not is_copy(case, target)
    blurred = np.clip(source.astype(int) + 10, 0, 255).astype(np.uint8)
    assert is_copy(case, blurred) and not is_copy(case, 255 - source)


def test_intervals_are_students() -> None:
    mean = mean_of([1.0, 2.0, 3.0])
    assert mean.value == 2 and mean.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert not mean.excludes_zero and mean_of([2.0, 2.1, 2.2]).excludes_zero
    assert mean_of([0.5]).text(1, 100) == "50.0" and mean.text(1) == "2.0 ± 2.5"
    with pytest.raises(ValueError, match="there is no value"):
        mean_of([])


def test_steps_to_a_level_and_how_much_sooner() -> None:
    slow = [(10, 8.0), (20, 6.0), (40, 2.0)]
    assert steps_to(slow, 4.0) == pytest.approx(30) and steps_to(slow, 8.0) == 10
    assert steps_to(slow, 1.0) is None
    fast = [(10, 4.0), (20, 1.0), (40, 0.5)]
    assert speed(fast, slow) == pytest.approx(40 / (10 + 10 * 2 / 3))
    assert speed(slow, fast) == pytest.approx(1 / speed(fast, slow))
    assert speed(slow, slow) == 1
    with pytest.raises(ValueError, match="a curve without points has no speed"):
        speed([], slow)


def test_the_table_holds_every_variant_against_the_first() -> None:
    def run(factor: float) -> dict:
        point = {"everywhere": 0.02 * factor, "changed": 0.2 * factor}
        half = {"everywhere": 0.01 * factor, "changed": 0.1 * factor}
        tally = {"successes": 3, "count": 4, "copies": 1, "could_copy": 2}
        return {
            "curve": [{"step": 1, "edit": point}, {"step": 2, "edit": half}],
            "judged": {"edit": tally},
        }

    results = {
        Job(variant=variant, seed=seed, budget=TINY).name: run(1 + number + 0.01 * seed)
        for number, variant in enumerate(EXPERIMENTS["c"])
        for seed in range(3)
    }
    lines = table("c", results, TINY, 3).splitlines()
    assert lines[2].startswith("| reference | edits | 10.10 ± 0.25 | 101.00 ± 2.48 | 0.00 ± 0.00 | 1.00 ±")
    assert (
        "| 10.00 ± 0.00 * | 2.00" not in lines[2] and "| 10.00 ± " in lines[3] and " * | 1.98 ± " in lines[3]
    )
    assert lines[3].endswith("| 75.0 ± 0.0 | 0.0 ± 0.0 | 50.0 ± 0.0 |")


def test_a_mean_is_over_the_steps_that_all_seeds_have() -> None:
    whole, stopped = [(0, 4.0), (40, 2.0), (80, 1.0)], [(0, 6.0), (80, 3.0)]
    assert mean_curve([whole, stopped]) == [(0, 5.0), (80, 2.0)]


def test_what_the_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture, caplog) -> None:
    for unknown in ("z", "ab"):
        assert command.main([unknown]) == 1
        assert f"there is no experiment '{unknown}'; choose from a, b, c, d, e" in capsys.readouterr().err
    options = ["b", "--processes", "1", "--model", str(tmp_path), "--work", str(tmp_path / "work")]
    assert command.main(options) == 1
    assert "positions and the adapters' switch are compared with LoRAs on a finished model" in caplog.text

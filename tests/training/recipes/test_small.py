"""The recipe of the small model: equal twice, resumable, and a folder others load."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from pack.dit.dreamomni.storage import load_network, read_index
from pack.training.config import RunConfig
from pack.training.config_json import from_json, to_json
from pack.training.evaluation.cases import held_out_cases
from pack.training.events import Heard
from pack.training.families import load_family
from pack.training.launch import TrainingError
from pack.training.recipes import small_run
from pack.training.recipes.repeat import check_repeat
from pack.training.recipes.small import Refinement, SmallRecipe
from pack.training.recipes.small_tasks import BASE_TASKS, LORA_TASKS
from pack.training.recipes.small_vlm import SmallVLMConfig, write_small_vlm
from pack.training.run_file import RunFile
from pack.training.synthesis.config import TASK_WEIGHTS
from pack.vlm.inputs import build_inputs, image_token_id
from PIL import Image
from safetensors import safe_open

from tests.training.recipes.small_budget import TINY_VLM, TrainHere, tiny_recipe


def test_twenty_steps_twice_give_equal_losses(tmp_path: Path) -> None:
    recipe = tiny_recipe(steps=20)
    runs = []
    for name in ("first", "again"):
        trained = TrainHere()
        small_run.train_base(recipe, tmp_path / name, "cpu", trained)
        runs.append(trained.losses["small-base"])
    assert len(runs[0]) == 20 and runs[0] == runs[1]
    assert len(set(runs[0])) == 20
    other = TrainHere()
    small_run.train_base(tiny_recipe(steps=1, seed=5), tmp_path / "other", "cpu", other)
    assert other.losses["small-base"][0] != runs[0][0]


def test_a_second_stage_goes_on_with_the_samples_that_follow(tmp_path: Path) -> None:
    def losses(name: str, **changes: int | float) -> list[float]:
        trained = TrainHere()
        small_run.train_base(tiny_recipe(**changes), tmp_path / name, "cpu", trained)
        return trained.losses["small-base"]

    still = {"learning_rate": 1e-9, "further_learning_rate": 1e-9}
    whole = losses("whole", steps=6, **still)
    assert losses("two", steps=4, further_steps=2, **still) == pytest.approx(whole, rel=1e-4)
    assert min(abs(a - b) for a in whole for b in whole if a != b) > 1e-3 * whole[0], "other samples"
    rates = tiny_recipe(steps=4, further_steps=2).base_run(tmp_path).stages
    assert [(stage.steps, stage.learning_rate) for stage in rates] == [(4, 3e-3), (2, 2.5e-3)]


def test_further_runs_start_from_the_finished_network_on_new_samples(tmp_path: Path) -> None:
    step = Refinement(steps=3, tasks=BASE_TASKS, learning_rate=1e-9)
    still = tiny_recipe(steps=3, refinements=(step, step))
    trained = TrainHere()
    base = small_run.train_base(still, tmp_path, "cpu", trained)
    refined = small_run.refine(still, base, tmp_path, "cpu", trained)
    before, after = (tensors_of(folder / "dit.safetensors")[0] for folder in (base, refined))
    assert refined != base and all(
        torch.allclose(before[name], after[name], rtol=0, atol=1e-7) for name in before
    )
    words = [tensors_of(folder / "vlm" / "model.safetensors")[0] for folder in (base, refined)]
    assert all(torch.allclose(words[0][name], words[1][name], atol=1e-7) for name in words[0])
    assert read_index(refined).network == read_index(base).network
    seen = [trained.losses[name] for name in ("small-base", "small-refined-1", "small-refined-2")]
    assert [len(losses) for losses in seen] == [3, 3, 3]
    assert len({loss for losses in seen for loss in losses}) == 9, "samples of its own for each run"
    faster = dataclasses.replace(step, learning_rate=1e-2)
    moved = dataclasses.replace(still, refinements=(faster,))
    other = small_run.refine(moved, base, tmp_path / "moved", "cpu", trained)
    changed = tensors_of(other / "dit.safetensors")[0]
    assert any(not torch.equal(before[name], changed[name]) for name in before)
    assert (
        small_run.refine(dataclasses.replace(still, refinements=()), base, tmp_path, "cpu", trained) == base
    )


def test_the_check_of_repeatability(tmp_path: Path) -> None:
    trained = TrainHere()
    last = check_repeat(tiny_recipe(steps=9), tmp_path, 4, "cpu", trained)
    losses = trained.losses["small-base"]
    assert len(losses) == 8 and losses[:4] == losses[4:] and last == losses[3]

    def wandering(run, folder, heard) -> int:
        late = "repeat-b" in str(folder)
        for step in range(3):
            heard({"event": "step", "step": step + 1, "loss": step + (late and step > 1)})
        return 0

    with pytest.raises(TrainingError, match="differ from step 3 of 3 on: 2 and 3"):
        check_repeat(tiny_recipe(), tmp_path, 3, "cpu", wandering)


def test_a_second_call_goes_on_where_the_first_stopped(tmp_path: Path) -> None:
    trained = TrainHere()
    for steps in (3, 3, 5):
        small_run.train_base(tiny_recipe(steps=steps), tmp_path, "cpu", trained)
    assert len(trained.losses["small-base"]) == 5


def test_what_is_finished_is_left_as_it_is(tmp_path: Path) -> None:
    recipe, trained, begun = tiny_recipe(), TrainHere(), list[str]()

    def breaks_down(run: RunFile, folder: Path, heard: Heard) -> int:
        begun.append(run.config.name)
        return 1 if run.config.name == "small-edit-lora" else trained(run, folder, heard)

    def all_files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}

    with pytest.raises(TrainingError, match="small-edit-lora ended with code 1"):
        small_run.train_small(recipe, tmp_path / "work", tmp_path / "out", "cpu", breaks_down)
    assert begun == ["small-base", "small-refined-1", "small-edit-lora"]
    before = all_files()
    small_run.train_small(recipe, tmp_path / "work", tmp_path / "out", "cpu", trained)
    after = all_files()
    assert before.items() <= after.items(), "nothing that was finished is written again"
    assert {name: len(losses) for name, losses in trained.losses.items()} == {
        "small-base": 2,
        "small-refined-1": 1,
        "small-edit-lora": 3,
        "small-generate-lora": 2,
    }
    longer = dataclasses.replace(recipe, steps=3)
    small_run.train_base(longer, tmp_path / "work", "cpu", trained)
    assert len(trained.losses["small-base"]) == 3, "other settings are another run"


def tensors_of(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_the_folder_is_whole_small_and_says_how_it_was_made(tiny_model: Path) -> None:
    files = {str(path.relative_to(tiny_model)) for path in tiny_model.rglob("*") if path.is_file()}
    wanted = {"dit.safetensors", "config.json", "recipe.json", "vlm/model.safetensors", "vlm/tokenizer.json"}
    assert wanted | {"loras/edit.safetensors", "loras/generate.safetensors"} <= files
    network = read_index(tiny_model).network
    assert (network.width, network.source_exit_skips, network.prediction) == (32, True, "clean")
    assert network.reference_positions == "index+offset"
    load_network(tiny_model)
    text = json.loads((tiny_model / "vlm" / "config.json").read_text())["text_config"]
    assert text["rope_scaling"]["mrope_section"] == text["rope_parameters"]["mrope_section"]
    recipe = json.loads((tiny_model / "recipe.json").read_text())
    assert from_json(SmallRecipe, recipe) == tiny_recipe()
    for name in ("dit", "vlm/model", "loras/edit", "loras/generate"):
        tensors, metadata = tensors_of(tiny_model / f"{name}.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
        if name != "vlm/model":
            config = json.loads(metadata["dreamomni.recipe"])
            assert config["seed"] == tiny_recipe().seed + (name == "dit") and "/" not in str(
                config["base"].values()
            )


def test_a_model_over_the_limit_is_refused(tiny_model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(small_run, "LARGEST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"the model takes \d\.\d MB, 0 MB are allowed"):
        small_run.assemble(tiny_recipe(), tiny_model, {}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_only_an_older_model_is_replaced(tmp_path: Path) -> None:
    def never(run, folder, heard) -> int:
        raise AssertionError("nothing may be trained")

    models, work = tmp_path / "models", tmp_path / "work"
    (models / "other").mkdir(parents=True)
    work.mkdir()
    (tmp_path / "file").touch()
    for out, words in (
        (models, "holds other things than a small model"),
        (work, "where the work lies"),
        (tmp_path, "where the work lies"),
        (tmp_path / "file", "is a file"),
    ):
        with pytest.raises(ValueError, match=words):
            small_run.train_small(tiny_recipe(), work, out, "cpu", never)
    (models / "recipe.json").touch()
    for out in (models, work / "model", tmp_path / "new"):
        with pytest.raises(AssertionError, match="nothing may be trained"):
            small_run.train_small(tiny_recipe(), work, out, "cpu", never)
    assert (models / "other").is_dir()


def test_a_failed_run_tells_its_last_words(tmp_path: Path) -> None:
    def fail(run, folder, heard) -> int:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "worker.log").write_text("no more disk")
        return 3

    with pytest.raises(TrainingError, match=r"small-base ended with code 3\.\nno more disk"):
        small_run.train_base(tiny_recipe(), tmp_path, "cpu", fail)


def test_a_stopped_network_gets_no_adapters(tmp_path: Path) -> None:
    def stop(run, folder, heard) -> int:
        assert run.watch_parent, "it must not go on for hours once its terminal is closed"
        heard({"event": "cancelled", "step": 1, "best_step": None})
        return 0

    with pytest.raises(TrainingError, match="small-base was stopped; the same command goes on"):
        small_run.train_small(tiny_recipe(), tmp_path / "work", tmp_path / "out", "cpu", stop)
    assert not (tmp_path / "out").exists() and not (tmp_path / "work" / "edit-data").exists()


def test_the_full_size_model_stays_under_the_limit(tmp_path: Path) -> None:
    from pack.dit.dreamomni.network import DreamOmniNetwork
    from pack.training.families.dreamomni_setup import network_config

    recipe = SmallRecipe()
    vlm = write_small_vlm(tmp_path / "vlm", recipe.vlm, 0)
    run = recipe.base_run(vlm)
    network = DreamOmniNetwork(network_config(run), device="meta")
    adapted = tuple(load_family("dreamomni").adapter_targets(run))
    layers = [m for name, m in network.named_modules() if name.split(".")[-1] in adapted]
    lora = sum((layer.in_features + layer.out_features) * recipe.lora_rank for layer in layers)
    numbers = sum(p.numel() for p in network.parameters()) + 2 * lora
    vlm_bytes = sum(path.stat().st_size for path in vlm.iterdir()) / 2
    assert 2 * numbers + vlm_bytes + 200_000 < small_run.LARGEST_BYTES


TASKS_WITH_REFERENCES = {task for tasks in LORA_TASKS.values() for task, _ in tasks}


def test_every_run_can_be_stored_and_uses_known_tasks(tmp_path: Path) -> None:
    recipe = SmallRecipe(side=64)
    adapters = [recipe.lora_run(task, tmp_path) for task in LORA_TASKS]
    refined = [recipe.refine_run(number, tmp_path) for number in range(len(recipe.refinements))]
    runs = [recipe.base_run(tmp_path), *refined, *adapters]
    assert all(from_json(RunConfig, to_json(run)) == run for run in runs)
    assert [run.total_steps for run in adapters] == [recipe.edit_steps, recipe.generate_steps]
    tasks = {task for task, _ in (*BASE_TASKS, *(pair for tasks in LORA_TASKS.values() for pair in tasks))}
    assert tasks <= TASK_WEIGHTS.keys()
    drawn = recipe.base_samples()
    assert drawn.easy is not None and drawn.easy_count == recipe.easy_samples
    assert {drawn.config.split, drawn.easy.split} == {"train"}
    assert {task for task, _ in drawn.easy.tasks} < {task for task, _ in drawn.config.tasks}
    seeds = {recipe.lora_synthesis(task).seed for task in LORA_TASKS} | {drawn.config.seed, drawn.easy.seed}
    further = [recipe.refine_samples(number) for number in range(len(recipe.refinements))]
    seeds |= {samples.config.seed for samples in further}
    assert len(seeds) == 4 + len(further) and {samples.config.split for samples in further} == {"train"}
    alone, *joint = ({task for task, _ in samples.config.tasks} for samples in further)
    assert alone == {task for task, _ in drawn.config.tasks}
    assert all(tasks == alone | TASKS_WITH_REFERENCES for tasks in joint) and len(joint) == 6
    for refinement, samples in zip(recipe.refinements, further, strict=True):
        assert samples.count >= refinement.steps * recipe.batch_size, "each sample once"
        assert samples.config.single_share == (refinement.single_share or recipe.single_share)
        assert samples.config.drag_share == (refinement.drag_share or recipe.drag_share)
    few = dataclasses.replace(recipe, distinct_samples=9).base_samples()
    assert few.easy_count == 4
    with pytest.raises(ValueError, match="side must be a multiple of 8 and at least 32, got 30"):
        SmallRecipe(side=30)
    with pytest.raises(ValueError, match="multiple of 8 from 16 to side, which is 32, got 40"):
        SmallRecipe(side=32, reference_side=40)
    with pytest.raises(ValueError, match="edit_steps must be at least 1, got 0"):
        SmallRecipe(edit_steps=0)


def test_the_small_vlm_reads_words_and_pictures(tmp_path: Path) -> None:
    import transformers

    folder = write_small_vlm(tmp_path / "vlm", TINY_VLM, seed=1)
    processor = transformers.Qwen2VLProcessor.from_pretrained(folder)
    request = build_inputs(processor, "Delete the blue ring.", [Image.new("RGB", (32, 32))])
    token = image_token_id(processor)
    assert (request["input_ids"] == token).sum() == 4
    assert request["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert processor.tokenizer.decode(request["input_ids"][0], skip_special_tokens=True) == (
        "delete the blue ring ."
    )
    spoken = build_inputs(processor, "Add <|image_pad|> here.", [])
    assert token not in spoken["input_ids"]
    one, two = tensors_of(folder / "model.safetensors"), None
    write_small_vlm(tmp_path / "again", TINY_VLM, seed=1)
    two = tensors_of(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(one[0][name], two[0][name]) for name in one[0])
    with pytest.raises(ValueError, match=r"6 heads get 10\.6667 channels each of width 64"):
        SmallVLMConfig(width=64, heads=6)


def test_adapters_see_references_in_the_size_they_are_judged_at(tiny_model: Path) -> None:
    recipe = tiny_recipe()
    (run,) = (tiny_model.parent / "work").glob("generate-lora-*")
    manifest = run / f"samples-{recipe.side}.jsonl"
    shapes = [json.loads(line)["shapes"] for line in manifest.read_text().splitlines()]
    (case,) = held_out_cases(recipe.synthesis(LORA_TASKS["generate"]), "reference_generation", "several", 1)
    judged = list(case.sample.references[0].shape[:2])
    assert judged == [recipe.reference_side] * 2 != [recipe.side] * 2
    assert all(shape == [3, *judged] for sample in shapes for shape in sample[1:])

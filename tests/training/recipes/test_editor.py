"""A trained folder before the judge: what it is told, which adapter it uses, and the commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pack.training.adapters import lora_parameters
from pack.training.config_json import to_json
from pack.training.dataset import open_dataset
from pack.training.evaluation import command as evaluation_command
from pack.training.evaluation.cases import held_out_cases
from pack.training.families import load_family
from pack.training.files import write_json
from pack.training.recipes import command
from pack.training.recipes.editor import BASE, SWITCHES, FolderEditor, judged_models, lora_for, question
from pack.training.recipes.loading import add_lora, load_trained
from pack.training.session import make_trainable
from safetensors.torch import load_file, save_file

from tests.training.recipes.small_budget import CPU, tiny_recipe


@pytest.fixture(scope="module")
def cases():
    recipe = tiny_recipe()
    found = []
    for task in ("remove", "reference_add", "reference_generation", "text_to_image"):
        found += held_out_cases(recipe.synthesis(((task, 1.0),)), task, "several", 2)
    return found


def test_results_belong_to_their_cases(loud_model: Path, cases) -> None:
    editor = FolderEditor(loud_model, sampling=2, device=CPU)
    together = editor(cases)
    assert all(result.shape == (32, 32, 3) and result.dtype == np.uint8 for result in together)
    for number in (1, 4):
        alone = editor([cases[number]])[0]
        assert np.abs(alone.astype(int) - together[number]).max() <= 1
    assert not np.array_equal(together[0], together[1])


def test_the_adapter_follows_the_task(loud_model: Path, cases) -> None:
    own = FolderEditor(loud_model, sampling=1, device=CPU)(cases)
    off = FolderEditor(loud_model, 1, CPU, SWITCHES["off"])(cases)
    crossed = FolderEditor(loud_model, 1, CPU, SWITCHES["crossed"])(cases)
    for case, one, two, three in zip(cases, own, off, crossed, strict=True):
        adapted = lora_for(case.task) != BASE
        assert adapted == (case.task in ("reference_add", "reference_generation"))
        assert np.array_equal(one, two) != adapted
        assert np.array_equal(one, three) != adapted


def test_an_added_adapter_equals_peft(loud_model: Path) -> None:
    recipe, path = tiny_recipe(), loud_model / "loras" / "edit.safetensors"
    merged, plain = load_trained(loud_model), load_trained(loud_model)
    add_lora(merged, path)
    config = recipe.lora_run("edit", loud_model)
    make_trainable(plain.dit, config, load_family("dreamomni"))
    saved = load_file(path)
    with torch.no_grad():
        for name, parameter in lora_parameters(plain.dit).items():
            parameter.copy_(saved[f"diffusion_model.{name}"])
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(1, 12, 16, 16, generator=generator)
    context = torch.randn(1, 6, 64, generator=generator)
    with torch.no_grad():
        one, two = (pair.dit.predict(latent, torch.tensor([0.5]), context) for pair in (merged, plain))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_a_foreign_adapter_is_refused(loud_model: Path, tmp_path: Path) -> None:
    one = torch.zeros(2, 2)
    name = "diffusion_model.blocks.0.qkv"
    tensors = {f"{name}.lora_A.weight": one, f"{name}.lora_B.weight": one.clone()}
    save_file({**tensors, f"{name}.alpha": torch.tensor(2.0)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors adapts diffusion_model.blocks.0.qkv, which"):
        add_lora(load_trained(loud_model), tmp_path / "other.safetensors")


def test_the_target_is_never_told(cases) -> None:
    for case in cases:
        asked = question(case)
        assert asked.target.abs().max() == 0
        assert len(asked.references) == len(case.sample.references) + (case.sample.source is not None)
        assert asked.instruction == case.sample.plan.instruction


def test_the_command_prints_the_judges_table(tiny_model: Path, tmp_path: Path, capsys) -> None:
    arguments = [str(tiny_model), "--cases", "2", "--tasks", "remove", "--steps", "1"]
    assert evaluation_command.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out
    assert "| small, one | small, several | copy the source, one |" in table
    assert "edit a random object" in table and "| remove |" in table
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"table.md", "verdicts.json", "remove-one.png", "remove-several.png"}


def test_a_models_cases_are_not_those_of_its_size(tiny_model: Path, tmp_path: Path, capsys) -> None:
    cases, asked = tmp_path / "cases", ["--cases", "1", "--tasks", "remove"]
    assert evaluation_command.main([*asked, "--size", "32", "--write-cases", str(cases)]) == 0
    answers = cases / "mine"
    answers.mkdir()
    for sample in open_dataset(cases):
        sample.target.save(answers / f"{sample.id}.png")
    judge = [str(tiny_model), *asked, "--steps", "1", "--answers", str(answers)]
    assert evaluation_command.main(judge) == 1
    told = capsys.readouterr().err
    assert "to the cases of `dev.py evaluate --size 32` (recipe" in told
    assert "those of `dev.py evaluate small` (recipe" in told


def test_what_the_command_refuses(tiny_model: Path, tmp_path: Path, capsys) -> None:
    assert evaluation_command.main([str(tmp_path)]) == 1
    assert "recipe.json is missing; train a small model with `python dev.py train" in capsys.readouterr().err
    assert evaluation_command.main([str(tiny_model), "--adapters", "both"]) == 1
    assert "adapters is 'both'; choose one of own, crossed, off" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    write_json(other / "recipe.json", to_json(tiny_recipe(side=64)))
    with pytest.raises(ValueError, match="know scenes of different kinds or sizes"):
        judged_models([tiny_model, other], 1)


def test_options_change_the_recipe() -> None:
    options = command.parser().parse_args(["--steps", "7", "--side", "64"])
    recipe = command.recipe_of(options)
    assert (recipe.steps, recipe.side, recipe.lora_rank) == (7, 64, tiny_recipe().__class__().lora_rank)

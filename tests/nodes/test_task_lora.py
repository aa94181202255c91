"""The task LoRA: every file layout is the same LoRA, the task switches it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from host_models import diffusers_kontext, kontext_model, kontext_weights
from kontext_steps import (
    TARGET,
    conditioning,
    diffusers_velocity,
    encoded,
    host_velocity,
    noise_like,
    process_in,
    references,
    relative_error,
    text_of,
)
from live_server import WORKFLOWS, read_workflow
from lora_files import (
    ALPHA,
    RANK,
    add_random_lora,
    lora_layers,
    write_by_diffusers,
    write_by_peft,
    write_fused,
)
from safetensors.torch import save_file

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Any]:
    """diffusers' network with a random adapter, and the adapter's config."""
    network = diffusers_kontext(kontext_weights())
    return network, add_random_lora(network)


@pytest.fixture
def folder(models_dir: Path) -> Path:
    return models_dir / "loras"


def reference_set(task: str, count: int = 1) -> Any:
    from pack.dit.references import ReferenceSet, Task

    return ReferenceSet(Task(task), (torch.rand(1, 16, 16, 3),) * count)


def switch(
    model: Any,
    task: str = "edit",
    count: int = 1,
    strength: float = 1.0,
    settings: dict[str, bool] | None = None,
    **names: str,
) -> Any:
    from pack.nodes.lora import TaskLoRA

    chosen = (names.get("edit", "none"), names.get("generate", "none"))
    return TaskLoRA.execute(model, reference_set(task, count), *chosen, strength, **settings or {}).args[0]


def velocity(model: Any, count: int = 2) -> torch.Tensor:
    return host_velocity(
        encoded(model), noise_like(1, 16, *TARGET, seed=3), 0.6, conditioning(references(count))
    )


@pytest.mark.parametrize("layout", ["diffusers", "peft", "kohya", "comfyui"])
def test_every_layout_equals_diffusers_with_the_adapter(folder: Path, trained: tuple, layout: str) -> None:
    network, config = trained
    name = "lora.safetensors"
    if layout == "diffusers":
        write_by_diffusers(folder / name, network, config)
    elif layout == "peft":
        write_by_peft(folder / "run", network)
        name = "run/adapter_model.safetensors"
    else:
        write_fused(folder / name, network, kohya=layout == "kohya")
    model, x = kontext_model(kontext_weights()), noise_like(1, 16, *TARGET, seed=3)
    cond = conditioning(references(2))
    inputs = process_in(model, references(2))
    expected = diffusers_velocity(network, x, 0.6, *text_of(cond), inputs)
    assert relative_error(velocity(switch(model, edit=name)), expected) < 1e-5
    assert relative_error(velocity(model), expected) > 1e-2


@pytest.mark.parametrize("count", range(6))
def test_one_step_with_lora_equals_diffusers(folder: Path, trained: tuple, count: int) -> None:
    network, config = trained
    write_by_diffusers(folder / "edit.safetensors", network, config)
    model, latents = kontext_model(kontext_weights()), references(count)
    cond, x = conditioning(latents), noise_like(1, 16, *TARGET, seed=3)
    patched = encoded(switch(model, edit="edit.safetensors"))
    expected = diffusers_velocity(network, x, 0.6, *text_of(cond), process_in(model, latents))
    assert relative_error(host_velocity(patched, x, 0.6, cond), expected) < 1e-4


def test_strength_scales_the_change(folder: Path, trained: tuple) -> None:
    write_fused(folder / "edit.safetensors", trained[0], kohya=True)
    halved = [switch(kontext_model(), edit="edit.safetensors", strength=s) for s in (0.5, 1.0)]
    changes = [patched_weight(model) - patched_weight(kontext_model()) for model in halved]
    assert changes[1].norm() > 0.1
    torch.testing.assert_close(changes[0] * 2, changes[1])


def patched_weight(model: Any) -> torch.Tensor:
    import comfy.lora

    key = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    weight = model.model.state_dict()[key].clone()
    return comfy.lora.calculate_weight(model.patches.get(key, []), weight, key)


def two_loras(folder: Path) -> dict[str, str]:
    for seed, name in ((1, "edit.safetensors"), (2, "generate.safetensors")):
        network = diffusers_kontext(kontext_weights())
        add_random_lora(network, seed)
        write_fused(folder / name, network, kohya=False)
    return {"edit": "edit.safetensors", "generate": "generate.safetensors"}


def test_the_task_chooses_and_switching_leaves_the_base_bit_for_bit(folder: Path) -> None:
    names, model = two_loras(folder), kontext_model()
    base = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    plain = velocity(model)
    edit, generate = switch(model, "edit", **names), switch(model, "generate", **names)
    first = velocity(edit)
    assert relative_error(first, velocity(generate)) > 1e-2
    assert torch.equal(velocity(edit), first)
    assert edit.model is generate.model is model.model
    assert torch.equal(velocity(model), plain)
    assert all(torch.equal(weight, base[name]) for name, weight in model.model.state_dict().items())


def test_without_images_the_model_itself_comes_back(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    names, model = two_loras(folder), kontext_model()
    with caplog.at_level("INFO", logger="dreamomni"):
        assert switch(model, "edit", count=0, **names) is model
        assert switch(model, "generate", count=0, **names) is model
        assert switch(model, "generate", edit=names["edit"]) is model
        assert switch(model, "edit", strength=0.0, **names) is model
    assert "LoRA off: no reference image" in caplog.text
    assert "LoRA off: none chosen for generate" in caplog.text


def test_an_edit_of_a_picture_alone_can_be_left_to_the_model(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The paper: the LoRA is on when there is a reference beside the source, else Kontext edits by itself."""
    names, model, off = two_loras(folder), kontext_model(), {"source_alone": False}
    with caplog.at_level("INFO", logger="dreamomni"):
        assert switch(model, "edit", 1, settings=off, **names) is model
    assert "LoRA off: only the picture to edit" in caplog.text
    assert switch(model, "edit", 2, settings=off, **names).patches
    assert switch(model, "generate", 1, settings=off, **names).patches
    assert switch(model, "edit", 1, **names).patches


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_with_the_published_loras_leave_a_picture_alone_to_kontext(name: str) -> None:
    from pack.nodes.lora import TaskLoRA

    nodes = [node for node in read_workflow(name)["nodes"] if node["type"] == "DreamOmniTaskLoRA"]
    inputs = {item.id for item in TaskLoRA.define_schema().inputs}
    for node in nodes:
        published = "dreamomni2_edit.safetensors" in node["widgets_values"]
        assert (node["widgets_values"][3:] == [False]) is published
        assert {slot["name"] for slot in node["inputs"]} - {"source_alone"} == inputs - {"source_alone"}


def test_switching_back_and_forth_reads_each_file_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pack.model_loaders import lora

    names, model, read = two_loras(folder), kontext_model(), []
    original = lora.read_weights
    monkeypatch.setattr(lora, "read_weights", lambda paths: read.append(paths[0].name) or original(paths))
    for task in ("edit", "generate", "edit", "generate"):
        switch(model, task, **names)
    assert sorted(read) == ["edit.safetensors", "generate.safetensors"]


def test_the_cache_is_bounded_and_sees_a_changed_file(folder: Path, trained: tuple) -> None:
    from pack.model_loaders import lora

    for n in range(4):
        write_fused(folder / f"{n}.safetensors", trained[0], kohya=True)
        switch(kontext_model(), edit=f"{n}.safetensors")
    assert len(lora._cache) == lora.MAX_CACHED_FILES
    save_file({"lora_unet_img_in.alpha": torch.tensor(1.0)}, str(folder / "3.safetensors"))
    assert len(lora.lora_weights("3.safetensors")) == 1


def test_settings_that_come_later_are_heard(folder: Path, trained: tuple) -> None:
    """Downloaded without adapter_config.json at first: its alpha was not known."""
    write_by_peft(folder / "run", trained[0])
    settings = folder / "run" / "adapter_config.json"
    whole = settings.read_text()
    settings.unlink()
    name = "run/adapter_model.safetensors"
    with_half = patched_weight(switch(kontext_model(), edit=name))
    settings.write_text(whole)
    with_all = patched_weight(switch(kontext_model(), edit=name))
    assert not torch.equal(with_half, with_all)
    plain = patched_weight(kontext_model())
    torch.testing.assert_close((with_half - plain) * ALPHA / RANK, with_all - plain, rtol=1e-4, atol=1e-6)


def test_unmatched_keys_are_reported(folder: Path, trained: tuple, caplog: pytest.LogCaptureFixture) -> None:
    layers = {f"transformer.{name}": value for name, value in lora_layers(trained[0]).items()}
    layers["transformer.transformer_blocks.99.attn.to_q.lora_A.weight"] = torch.zeros(4, 64)
    layers["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.zeros(4, 8)
    save_file(layers, str(folder / "more.safetensors"))
    with caplog.at_level("INFO", logger="dreamomni"):
        switch(kontext_model(), edit="more.safetensors")
    assert "more.safetensors: 16 modules; 1 keys not used: transformer.transformer_blocks.99" in caplog.text


@pytest.mark.parametrize("by_peft", [False, True])
def test_the_bias_of_a_peft_lora_equals_diffusers(folder: Path, by_peft: bool) -> None:
    network = diffusers_kontext(kontext_weights())
    config = add_random_lora(network, lora_bias=True)
    assert any(name.endswith("to_q.lora_B.bias") for name in lora_layers(network))
    name = "run/adapter_model.safetensors" if by_peft else "biased.safetensors"
    if by_peft:
        write_by_peft(folder / "run", network)
    else:
        write_by_diffusers(folder / name, network, config)
    model, x, cond = kontext_model(kontext_weights()), noise_like(1, 16, *TARGET, seed=3), references(2)
    text = text_of(conditioning(cond))
    expected = diffusers_velocity(network, x, 0.6, *text, process_in(model, cond))
    assert relative_error(velocity(switch(model, edit=name)), expected) < 1e-5
    for wrapped in list(network.modules()):
        if hasattr(wrapped, "lora_B"):
            wrapped.lora_B["default"].bias.data.zero_()
    without = diffusers_velocity(network, x, 0.6, *text, process_in(model, cond))
    assert relative_error(without, expected) > 1e-2


def test_a_bias_is_used_in_full_and_one_without_a_place_is_reported(folder: Path) -> None:
    from pack.model_loaders.lora import apply_lora

    network = diffusers_kontext(kontext_weights())
    add_random_lora(network, lora_bias=True)
    layers = {f"transformer.{name}": value for name, value in lora_layers(network).items()}
    odd = {"transformer.transformer_blocks.99.attn.to_q.lora_B.bias": torch.zeros(64)}
    unread = {"transformer.transformer_blocks.0.attn.to_q.unheard_of": torch.zeros(4)}
    save_file(layers | odd | unread, str(folder / "biased.safetensors"))
    _, report = apply_lora(kontext_model(), "biased.safetensors", 1.0)
    assert report.num_modules == 16
    assert sorted(report.unmatched) == sorted([*odd, *unread])


def test_a_bias_for_a_layer_without_one_is_refused(folder: Path) -> None:
    from pack.model_loaders.lora_patches import bias_patches

    weights = {"llm.proj.lora_A.weight": torch.zeros(2, 8), "llm.proj.lora_B.bias": torch.zeros(8)}
    with pytest.raises(ValueError, match=r"LoRA x has a bias for llm\.proj .*lora_bias=False"):
        bias_patches("x", weights, {"llm.proj": "net.proj.weight"}, {"net.proj.weight"})


def test_a_dora_of_peft_is_refused_by_name(folder: Path) -> None:
    network = diffusers_kontext(kontext_weights())
    add_random_lora(network, use_dora=True)
    layers = {f"transformer.{name}": value for name, value in lora_layers(network).items()}
    save_file(layers, str(folder / "dora.safetensors"))
    with pytest.raises(
        ValueError, match=r"dora\.safetensors was trained by PEFT with DoRA \(16 keys"
    ) as caught:
        switch(kontext_model(), edit="dora.safetensors")
    assert "lora_magnitude_vector" in str(caught.value)
    assert "merge_and_unload" in str(caught.value)


def test_a_host_that_copies_the_weights_is_judged_by_names(
    folder: Path, trained: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pack.model_loaders.lora import apply_lora

    import comfy.lora

    original = comfy.lora.load_lora
    monkeypatch.setattr(
        comfy.lora, "load_lora", lambda weights, *rest, **more: original(dict(weights.items()), *rest, **more)
    )
    layers = {f"transformer.{name}": value for name, value in lora_layers(trained[0]).items()}
    save_file(layers | {"nowhere.lora_A.weight": torch.zeros(4, 8)}, str(folder / "copied.safetensors"))
    _, report = apply_lora(kontext_model(), "copied.safetensors", 1.0)
    assert (report.num_modules, report.unmatched) == (16, ("nowhere.lora_A.weight",))


def test_a_lora_of_another_model_is_refused_with_both_names(folder: Path) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight"
    save_file({name: torch.zeros(320, 4)}, str(folder / "sdxl.safetensors"))
    with pytest.raises(
        ValueError, match=r"LoRA sdxl.safetensors is for another model: none of its 1 keys"
    ) as caught:
        switch(kontext_model(), edit="sdxl.safetensors")
    assert name in str(caught.value)
    assert "Flux (64 channels, 2+2 blocks)" in str(caught.value)


def test_a_text_encoder_lora_is_refused(folder: Path) -> None:
    name = "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"
    save_file({name: torch.zeros(4, 8)}, str(folder / "te.safetensors"))
    with pytest.raises(ValueError, match=r"te.safetensors is for another model: none of its 1 keys"):
        switch(kontext_model(), edit="te.safetensors")


def test_a_lora_of_a_larger_flux_is_refused_by_its_size(folder: Path) -> None:
    module = "lora_unet_double_blocks_0_img_attn_qkv"
    weights = {
        f"{module}.lora_down.weight": torch.zeros(4, 3072),
        f"{module}.lora_up.weight": torch.zeros(9216, 4),
    }
    save_file(weights, str(folder / "large.safetensors"))
    with pytest.raises(ValueError, match=r"img_attn.qkv.weight is 9216x3072, in this MODEL.* it is 192x64"):
        switch(kontext_model(), edit="large.safetensors")


def test_a_path_that_leaves_the_folders_and_a_missing_file_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="leaves the model folders"):
        switch(kontext_model(), edit="../x.safetensors")
    with pytest.raises(FileNotFoundError, match="no safetensors file 'gone"):
        switch(kontext_model(), edit="gone.safetensors")


@pytest.mark.parametrize(
    ("settings", "alpha"),
    [
        ({}, None),
        ({"lora_alpha": 8}, 8.0),
        ({"lora_alpha": 8, "alpha_pattern": {"attn.to_q": 2}}, 2.0),
        ({"lora_alpha": 8, "alpha_pattern": {"to_k": 2}}, 8.0),
        ({"lora_alpha": 8, "use_rslora": True}, 32.0),
    ],
)
def test_alpha_of_a_module(settings: dict, alpha: float | None) -> None:
    from pack.model_loaders.lora import alpha_of

    assert alpha_of("transformer_blocks.0.attn.to_q", 16, settings) == alpha

"""After each save every part of the LoRA loads by ComfyUI's own key map, or the run says which does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pack.training.config import AdapterConfig, MemoryConfig, RunConfig
from pack.training.export import export
from pack.training.families import load_family
from pack.training.session import Session
from safetensors.torch import load_file, save_file
from tiny_dreamomni import toy_config, write_network
from tiny_omnigen import tiny_config, write_official

pytestmark = pytest.mark.host

CPU = torch.device("cpu")


class LazyOperations:
    """Layers as ComfyUI's are with dynamic memory: no weights before a file is loaded into them."""

    def __getattr__(self, kind: str) -> Any:
        import comfy.ops

        def empty(*args: Any, **kwargs: Any) -> torch.nn.Module:
            layer = getattr(comfy.ops.disable_weight_init, kind)(*args, **kwargs)
            for name, _ in list(layer.named_parameters(recurse=False)):
                setattr(layer, name, None)
            return layer

        return empty


@pytest.fixture(params=["kontext", "shards", "omnigen", "dreamomni"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> RunConfig:
    from host_models import write_diffusers, write_sharded

    base = {
        "kontext": lambda: {"transformer": str(write_diffusers(tmp_path / "tiny.safetensors"))},
        "shards": lambda: {"transformer": str(write_sharded(tmp_path / "shards"))},
        "omnigen": lambda: {"transformer": str(write_official(tmp_path / "omnigen", tiny_config()))},
        "dreamomni": lambda: {"model": str(write_network(tmp_path / "dreamomni", toy_config()))},
    }[request.param]()
    return RunConfig(
        name="tiny",
        family=request.param.replace("shards", "kontext"),
        base=base,
        memory=MemoryConfig(precision="fp32"),
        adapter=AdapterConfig(rank=2, alpha=4),
    )


def saved(config: RunConfig, folder: Path) -> tuple[Session, Path]:
    """A LoRA far from zero and its file as a run writes it."""
    session = Session(config, load_family(config.family), CPU)
    for parameter in session.trainable.values():
        parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    (lora,) = export(session, folder / "exports", "last", {})
    return session, lora


def test_every_module_becomes_the_patch_that_was_trained(config: RunConfig, tmp_path: Path) -> None:
    from pack.model_loaders.lora_check import unmatched_keys
    from pack.nodes.training_bases import bare_model
    from pack.nodes.training_checks import require_loadable
    from peft.tuners.tuners_utils import BaseTunerLayer

    import comfy.lora

    session, lora = saved(config, tmp_path)
    model = bare_model(config)
    assert unmatched_keys(lora, model) == []
    require_loadable(config, lora)
    places = comfy.lora.model_lora_keys_unet(model, {})
    patches = comfy.lora.load_lora(load_file(lora), places, log_missing=False)
    layers = {n: m for n, m in session.network.named_modules() if isinstance(m, BaseTunerLayer)}
    assert len(patches) == len(layers) > 0
    for name, layer in layers.items():
        place = places[session.family.lora_prefix + name]
        trained = layer.get_delta_weight("default")
        got = comfy.lora.calculate_weight(
            [(1.0, patches[place], 1.0, None, None)], torch.zeros_like(trained), name
        )
        torch.testing.assert_close(got, trained, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["stand-in", "host"])
def test_layers_without_weights_have_their_names(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """As on NVIDIA cards with ComfyUI's dynamic memory."""
    from pack.model_loaders.lora_check import unmatched_keys
    from pack.nodes.training_bases import bare_model

    import comfy.ops

    _, lora = saved(config, tmp_path)
    # Only while it is built: without a card the rest of dynamic memory is not there.
    with monkeypatch.context() as built:
        if how == "stand-in":
            built.setattr(comfy.ops, "pick_operations", lambda *_, **__: LazyOperations())
        else:
            memory = pytest.importorskip("comfy.memory_management", reason="no dynamic memory here")
            built.setattr(memory, "aimdo_enabled", True)
        model = bare_model(config)
    assert unmatched_keys(lora, model) == []


def test_a_foreign_key_is_refused_with_its_name_and_what_to_do(config: RunConfig, tmp_path: Path) -> None:
    from pack.nodes.training_run import Job, Listener

    _, lora = saved(config, tmp_path)
    tensors = load_file(lora)
    prefix = load_family(config.family).lora_prefix
    save_file(tensors | {f"{prefix}no_such_block.lora_A.weight": torch.zeros(2, 8)}, lora)
    job = Job(config=config, dataset=None, encode_picture=None, encode_prompt=None)
    with pytest.raises(ValueError, match=r"1 parts of the saved LoRA do not load in this ComfyUI") as caught:
        Listener(job)({"event": "exported", "step": 1, "name": "last", "files": [str(lora)]})
    assert f"first {prefix}no_such_block.lora_A.weight" in str(caught.value)
    assert f"The run is kept in {tmp_path}" in str(caught.value)


def test_half_a_module_is_noticed(config: RunConfig, tmp_path: Path) -> None:
    from pack.nodes.training_checks import require_loadable

    _, lora = saved(config, tmp_path)
    tensors = load_file(lora)
    del tensors[next(name for name in tensors if name.endswith("lora_B.weight"))]
    save_file(tensors, lora)
    with pytest.raises(ValueError, match=r"first 1 of \d+ modules gave no patch"):
        require_loadable(config, lora)

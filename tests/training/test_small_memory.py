"""8-bit moments and a 4-bit base by bitsandbytes, really run on the CPU; and what is said without it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from kontext_runs import kontext_run
from pack.training import optimizers, process
from pack.training.adapters import inject_lora, lora_off
from pack.training.checkpoint import checkpoint_steps, load_newest
from pack.training.config import (
    AdapterConfig,
    MemoryConfig,
    OptimizerConfig,
    OutputConfig,
    RunConfig,
    StageConfig,
    ValidationConfig,
)
from pack.training.families.kontext import KontextFamily
from pack.training.frozen import frozen_linear, hold_frozen
from pack.training.memory import session_footprint
from pack.training.optimizers import require_packages
from pack.training.session import Session
from torch import nn

from tests.training.families.test_kontext import lora_gradient, sample
from tests.training.tiny_flux import saved_flux, tiny_flux
from tests.training.toy import toy_config, toy_place, toy_trainer

CPU = torch.device("cpu")
EIGHT_BIT = OptimizerConfig(name="adamw8bit", weight_decay=0.0)
needs_bitsandbytes = pytest.mark.skipif(
    optimizers.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def eight_bit_config(steps: int, **changes: object) -> RunConfig:
    """Rank 64 on 64 channels: matrices of 4096 values, the smallest that bitsandbytes keeps in 8 bits."""
    return toy_config(
        steps=steps,
        optimizer=EIGHT_BIT,
        adapter=AdapterConfig(rank=64, alpha=64),
        validation=ValidationConfig(fraction=0.0),
        **changes,
    )


@needs_bitsandbytes
def test_eight_bit_adamw_learns_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    stage = StageConfig(resolution=16, batch_size=4, steps=30, learning_rate=3e-3)
    config = eight_bit_config(30, stages=(stage,), output=OutputConfig(checkpoint_every=100, sample_every=0))
    whole, events = toy_trainer(config, toy_place(tmp_path / "whole", count=4))
    assert whole.run() == "finished"
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5]), losses

    place = toy_place(tmp_path / "halves", count=4)
    first, _ = toy_trainer(config, place, stop_at=15)
    assert first.run() == "cancelled"
    second, events = toy_trainer(config, place)
    assert second.run() == "finished"
    assert events[0]["step"] == 15
    for name, parameter in whole.session.trainable.items():
        assert torch.equal(parameter, second.session.trainable[name]), name


@needs_bitsandbytes
def test_a_checkpoint_holds_the_moments_in_eight_bits(tmp_path: Path) -> None:
    place = toy_place(tmp_path, count=4)
    trainer, _ = toy_trainer(eight_bit_config(2), place)
    trainer.run()
    state, messages = load_newest(place.checkpoints)
    assert state is not None and messages == []
    moments = {name: t for name, t in state.tensors.items() if name.endswith((".state1", ".state2"))}
    small = {name for name, tensor in moments.items() if tensor.dtype == torch.uint8}
    assert len(small) == 2 * sum(p.numel() >= 4096 for p in trainer.session.trainable.values()) > 0
    assert len(moments) == 2 * len(trainer.session.trainable)
    for name in small:
        assert state.tensors[name].any(), "moments that were never written"
        scales = name.replace(".state", ".absmax")
        assert state.tensors[scales].dtype == torch.float32
    assert json.dumps(state.data["optimizer"])


def nf4_config(base: Path) -> RunConfig:
    return RunConfig(
        name="small",
        family="kontext",
        base={"transformer": str(base)},
        memory=MemoryConfig(precision="nf4"),
        adapter=AdapterConfig(rank=32, alpha=32),
        optimizer=EIGHT_BIT,
    )


@needs_bitsandbytes
def test_a_lora_on_an_nf4_base_learns_and_leaves_the_base_alone(tmp_path: Path) -> None:
    """nf4 base and 8-bit moments together, as the 12 GB preset's cards would run them."""
    family, config = KontextFamily(), nf4_config(saved_flux(tmp_path, tiny_flux()))
    session = Session(config, family, CPU)
    layers = {n: m for n, m in session.network.named_modules() if type(m).__name__ == "Linear4bit"}
    assert {layer.weight.dtype for layer in layers.values()} == {torch.uint8}
    assert any(name.endswith("attn.to_q.base_layer") for name in layers)
    assert not any(name.startswith(("x_embedder", "proj_out", "norm_out")) for name in layers)
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}

    batch = family.collate([sample()], config, CPU, torch.float32)
    noise, sigmas = torch.randn(1, 16, 8, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([0.5])
    losses = []
    for _ in range(8):
        session.set_learning_rate(StageConfig(learning_rate=1e-2), 0)
        with session.autocast():
            loss = family.loss(session.network, batch, noise, sigmas, config).sum()
        loss.backward()
        session.optimizer.step()
        session.optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses
    assert all(torch.equal(layer.weight, before[name]) for name, layer in layers.items())
    assert {p.dtype for p in session.trainable.values()} == {torch.float32}

    with torch.no_grad(), session.autocast(), lora_off(session.network):
        off = family.loss(session.network, batch, noise, sigmas, config).item()
    assert off == pytest.approx(losses[0], rel=1e-3)


@needs_bitsandbytes
@pytest.mark.parametrize("adapted", [False, True])
def test_an_nf4_layer_answers_in_autocasts_dtype_as_the_others_do(adapted: bool) -> None:
    dtypes = {}
    for precision in ("bf16", "int8", "nf4"):
        network = nn.Sequential(nn.Linear(64, 64))
        hold_frozen(network, MemoryConfig(precision=precision), CPU)
        if adapted:
            inject_lora(network, AdapterConfig(rank=2, alpha=2), ["0"], seed=0)
        x = torch.randn(2, 64, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            y = network(x)
        y.float().square().sum().backward()
        assert x.grad is not None and x.grad.dtype == torch.float32 and x.grad.any()
        dtypes[precision] = y.dtype, network(x).dtype
    assert dtypes == dict.fromkeys(dtypes, (torch.bfloat16, torch.float32))


@needs_bitsandbytes
def test_an_nf4_base_gives_nearly_the_same_gradients(tmp_path: Path) -> None:
    path = saved_flux(tmp_path, tiny_flux())
    (full, _), (small, _) = (lora_gradient(path, precision, 0.5) for precision in ("fp32", "nf4"))
    assert torch.cosine_similarity(full, small, dim=0) > 0.97


@needs_bitsandbytes
def test_a_whole_run_in_nf4_with_eight_bit_moments_goes_on(tmp_path: Path) -> None:
    run, folder = kontext_run(tmp_path, steps=2), tmp_path / "run"
    config = dataclasses.replace(
        run.config, memory=MemoryConfig(precision="nf4"), optimizer=EIGHT_BIT, adapter=AdapterConfig(rank=32)
    )
    for steps in (2, 3):
        stages = (dataclasses.replace(config.stages[0], steps=steps),)
        dataclasses.replace(run, config=dataclasses.replace(config, stages=stages)).write(folder)
        assert process.main(folder) == 0
        assert checkpoint_steps(folder / "checkpoints")[-1] == steps


@needs_bitsandbytes
@pytest.mark.parametrize("precision", ["fp32", "int8", "nf4"])
def test_the_plan_counts_whole_weights_and_channels(tmp_path: Path, precision: str) -> None:
    """A 4-bit weight has half as many elements as it stands for; the LoRA's rank is no width."""
    network = tiny_flux()
    config = dataclasses.replace(
        nf4_config(saved_flux(tmp_path, network)), memory=MemoryConfig(precision=precision)
    )
    size = session_footprint(Session(config, KontextFamily(), CPU))
    assert size.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert (size.width, size.blocks) == (128, 2)
    # 8 projections of the double block, 3 of the single one, A and B of 32 x 128 each
    assert size.trainable == 11 * 2 * 32 * 128


def test_an_int8_layer_keeps_no_weight_for_the_backward_pass() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32)
    layer = frozen_linear(linear, MemoryConfig(precision="int8"), CPU)
    x, kept = torch.randn(4, 64, requires_grad=True), []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = layer(x)
    assert max(kept, default=0) < linear.weight.numel()
    torch.testing.assert_close(out, linear(x), rtol=0.05, atol=0.02)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient, linear.weight.sum(0).expand(4, 64), rtol=0.05, atol=0.02)


@pytest.fixture
def without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where it was never installed."""
    real = optimizers.find_spec
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None if name == "bitsandbytes" else real(name))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"optimizer": EIGHT_BIT},
            r"the optimizer adamw8bit needs the package bitsandbytes.*optimizer adamw",
        ),
        (
            {"memory": MemoryConfig(precision="nf4")},
            r"base in nf4 needs the package bitsandbytes.*int8 or fp8",
        ),
    ],
)
def test_a_missing_package_is_said_before_any_work_and_by_the_process(
    tmp_path: Path, capfd: pytest.CaptureFixture, without_bitsandbytes: None, changes: dict, words: str
) -> None:
    run, folder = kontext_run(tmp_path, steps=1), tmp_path / "run"
    config = dataclasses.replace(run.config, **changes)
    with pytest.raises(ImportError, match=rf"(?s){words}") as caught:
        require_packages(config)
    assert f"`{sys.executable} -m pip install bitsandbytes`" in str(caught.value)
    dataclasses.replace(run, config=config).write(folder)
    assert process.main(folder) == process.EXIT_REFUSED
    (line,) = [text for text in capfd.readouterr().out.splitlines() if text.startswith("{")]
    assert f"`{sys.executable} -m pip install bitsandbytes`" in json.loads(line)["message"]
    require_packages(run.config)

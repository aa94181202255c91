"""Muon for matrices inside blocks, AdamW for the rest: against torch's own two, and across a checkpoint."""

from __future__ import annotations

import copy

import pytest
import torch
from pack.training.config import OptimizerConfig
from pack.training.optimizers import make_optimizer, optimizer_state, restore_optimizer

from tests.training.toy import CPU, ToyFamily, toy_config

CONFIG = OptimizerConfig(name="muon", weight_decay=0.01, beta2=0.98)


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return ToyFamily().load_network(toy_config(), CPU)


def hidden_of(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for name, p in module.named_parameters() if ToyFamily().is_hidden_matrix(name, p)]


def muon(module: torch.nn.Module, rate: float = 1e-2) -> torch.optim.Optimizer:
    return make_optimizer(CONFIG, module.parameters(), rate, hidden_of(module))


def fill_gradients(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_the_blocks_matrices_are_hidden() -> None:
    module = network()
    names = {name for name, p in module.named_parameters() if ToyFamily().is_hidden_matrix(name, p)}
    assert names == {f"blocks.{n}.{part}.weight" for n in (0, 1) for part in ("first", "second")}


def test_it_equals_torchs_two_optimizers() -> None:
    one, two = network(), network()
    ours = muon(one)
    matrices = hidden_of(two)
    known = {id(p) for p in matrices}
    rest = [p for p in two.parameters() if id(p) not in known]
    theirs = [
        torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.01),
    ]
    for step in range(3):
        for group in [*ours.param_groups, *(g for part in theirs for g in part.param_groups)]:
            group["lr"] = 1e-2 / (1 + step)
        fill_gradients(one, step)
        fill_gradients(two, step)
        for optimizer in (ours, *theirs):
            optimizer.step()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_restored_state_goes_on_bit_for_bit() -> None:
    first = network()
    optimizer = muon(first)
    fill_gradients(first, 1)
    optimizer.step()
    tensors, data = optimizer_state(optimizer)
    second = copy.deepcopy(first)
    again = muon(second, rate=5.0)
    restore_optimizer(again, tensors, data)
    for module, stepped in ((first, optimizer), (second, again)):
        fill_gradients(module, 2)
        stepped.step()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    again.zero_grad()
    assert all(parameter.grad is None for parameter in second.parameters())


def test_reasons_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    module = network()
    with pytest.raises(ValueError, match="Muon trains matrices inside blocks and this run trains none"):
        make_optimizer(CONFIG, module.parameters(), 1e-2)
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ImportError, match=r"needs PyTorch 2\.9 or newer"):
        muon(module)

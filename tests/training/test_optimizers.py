"""Optimizer settings arrive where they work: the rate of a step, the groups, the clipped gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pack.training.config import OptimizerConfig
from pack.training.optimizers import learning_rate_factor, make_optimizer
from pack.training.presets import Overrides, lora_run, with_optimizer
from torch import nn

from tests.training.toy import toy_config, toy_place, toy_trainer


def test_the_rate_warms_up_and_falls() -> None:
    constant = OptimizerConfig(schedule="constant_with_warmup", warmup_steps=4)
    factor = learning_rate_factor(constant, 10)
    assert [factor(step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert factor(9) == 1
    factor = learning_rate_factor(OptimizerConfig(schedule="cosine", warmup_steps=4), 10)
    assert [factor(step) for step in (2, 4, 7, 10)] == pytest.approx([0.5, 1, 0.5, 0])


@pytest.mark.parametrize("name", ["adamw", "prodigy", "adamw8bit"])
def test_every_setting_reaches_the_optimizer(name: str) -> None:
    pytest.importorskip({"prodigy": "prodigyopt", "adamw8bit": "bitsandbytes"}.get(name, "torch"))
    config = OptimizerConfig(name=name, beta1=0.8, beta2=0.9, epsilon=1e-5, weight_decay=0.1)
    optimizer = make_optimizer(config, [nn.Parameter(torch.zeros(2))], learning_rate=0.5)
    group = optimizer.param_groups[0]
    found = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
    assert found == {"lr": 0.5, "betas": (0.8, 0.9), "eps": 1e-5, "weight_decay": 0.1}


def test_prodigy_learns_at_its_own_unit() -> None:
    pytest.importorskip("prodigyopt")
    run = lora_run(
        name="x", family="kontext", task="edit", base={}, preset="hobby", chosen=Overrides(), seed=0
    )
    run = with_optimizer(run, "prodigy", Overrides())
    draw = torch.Generator().manual_seed(0)
    x, wanted = torch.randn(32, 8, generator=draw), torch.randn(8, 8, generator=draw)
    down, up = nn.Parameter(torch.randn(4, 8, generator=draw) / 8**0.5), nn.Parameter(torch.zeros(8, 4))
    optimizer = make_optimizer(run.optimizer, [down, up], run.stages[0].learning_rate)
    losses = []
    for _ in range(100):
        loss = (x @ down.T @ up.T - x @ wanted.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0], losses


def test_the_gradient_is_clipped_and_its_own_norm_told(tmp_path: Path) -> None:
    place, told, left = toy_place(tmp_path), {}, {}
    for limit in (0.0, 1e-3):
        trainer, _ = toy_trainer(toy_config(optimizer=OptimizerConfig(clip_norm=limit)), place)
        _, told[limit] = trainer.open_stage()[1].gradients(0, 0)
        gradients = [parameter.grad.flatten() for parameter in trainer.session.trainable.values()]
        left[limit] = torch.cat(gradients).norm().item()
        trainer.close()
    assert told[0.0] == pytest.approx(told[1e-3]) and told[0.0] > 0.01
    assert left == {0.0: pytest.approx(told[0.0]), 1e-3: pytest.approx(1e-3, rel=1e-2)}

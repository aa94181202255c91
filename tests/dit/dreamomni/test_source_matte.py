"""The switch that lets the network compose its picture from paint and source."""

from __future__ import annotations

import pytest
import torch
from pack.dit.dreamomni.initialize import initialize
from pack.dit.dreamomni.network import DreamOmniNetwork
from tiny_dreamomni import VLM_WIDTH, random_weights, toy_config

from tests.dit.dreamomni.test_source_skips import SIGMA, draw

ON = {"source_matte": True, "prediction": "clean"}


def network() -> DreamOmniNetwork:
    config = toy_config(**ON)
    made = DreamOmniNetwork(config)
    made.load_state_dict(random_weights(config))
    return made


def paint(made: DreamOmniNetwork, *pictures: torch.Tensor) -> torch.Tensor:
    latent, context = draw(2, 48, 4, 6, seed=1), draw(2, 5, VLM_WIDTH, seed=2)
    with torch.no_grad():
        return made.predict(latent, SIGMA, context, ref_latents=pictures)


def test_the_picture_is_paint_over_the_source_by_the_matte() -> None:
    made, seen = network(), []
    made.exit.register_forward_hook(lambda module, arguments, result: seen.append(result))
    source = draw(2, 48, 4, 6, seed=3)
    picture = paint(made, source)
    painted, logit = seen[0][:, :48], seen[0][:, 48:]
    matte = 1 / (1 + torch.exp(-logit))
    torch.testing.assert_close(picture, matte * painted + (1 - matte) * source, rtol=1e-5, atol=1e-5)


def test_a_shut_matte_gives_the_source_back_exactly() -> None:
    made, source = network(), draw(2, 48, 4, 6, seed=3)
    with torch.no_grad():
        made.exit.out.weight[48:] = 0
        made.exit.out.bias[48:] = -200
    assert torch.equal(paint(made, source), source)


@pytest.mark.parametrize("pictures", [(), ((2, 48, 2, 2),)])
def test_without_a_source_of_its_size_everything_is_paint(pictures: tuple) -> None:
    made, seen = network(), []
    made.exit.register_forward_hook(lambda module, arguments, result: seen.append(result))
    picture = paint(made, *(draw(*shape) for shape in pictures))
    assert torch.equal(picture, seen[0][:, :48])


def test_a_fresh_network_shows_mostly_the_source() -> None:
    made = DreamOmniNetwork(toy_config(**ON))
    initialize(made, torch.Generator().manual_seed(0))
    source = draw(2, 48, 4, 6, seed=3)
    torch.testing.assert_close(paint(made, source), source * 0.880797, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("off", [{"source_tokens": False}, {"prediction": "velocity"}])
def test_it_needs_what_it_builds_on(off: dict) -> None:
    with pytest.raises(ValueError, match="source_matte needs source_tokens and prediction clean"):
        toy_config(**{**ON, **off})

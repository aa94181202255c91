"""The switch that hands the source's stem features to the exit."""

from __future__ import annotations

import pytest
import torch
from pack.dit.dreamomni.network import DreamOmniNetwork
from tiny_dreamomni import VLM_WIDTH, random_weights, toy_config

SIGMA = torch.tensor([0.7, 0.2])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(**changes) -> DreamOmniNetwork:
    config = toy_config(**changes)
    made = DreamOmniNetwork(config)
    made.load_state_dict(random_weights(config))
    return made


def output(made: DreamOmniNetwork, *pictures: torch.Tensor) -> torch.Tensor:
    latent, context = draw(2, 48, 4, 6, seed=1), draw(2, 5, VLM_WIDTH, seed=2)
    with torch.no_grad():
        return made.predict(latent, SIGMA, context, ref_latents=pictures)


@pytest.mark.parametrize("merge", ["concat", "add"])
def test_features_of_the_first_picture_reach_the_exit(merge: str) -> None:
    made = network(source_exit_skips=True, conv_skip_merge=merge)
    source, other = draw(2, 48, 4, 6, seed=3), draw(2, 48, 4, 6, seed=4)
    latent, context = draw(2, 48, 4, 6, seed=1), draw(2, 5, VLM_WIDTH, seed=2)
    seen = []
    hook = made.exit.register_forward_pre_hook(lambda module, arguments: seen.append(arguments))
    with torch.no_grad():
        made.predict(latent, SIGMA, context, ref_latents=[source, other])
        _, skip_a, skip_b = made.stem(source, made.time_in(torch.zeros(2), source.dtype))
    hook.remove()
    assert torch.equal(seen[0][4][0], skip_a) and torch.equal(seen[0][4][1], skip_b)
    tokens, time, own_a, own_b, source_skips = seen[0]
    with torch.no_grad():
        change = made.exit(tokens, time, own_a, own_b, source_skips) - made.exit(tokens, time, own_a, own_b)
    assert change.abs().max() > 1e-3


def test_zero_weights_for_the_source_are_the_figure() -> None:
    figure, made = network(), network(source_exit_skips=True)
    weights = figure.state_dict()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            known = weights[name]
            parameter.zero_()
            parameter[tuple(slice(size) for size in known.shape)] = known
    source = draw(2, 48, 4, 6, seed=3)
    torch.testing.assert_close(output(made, source), output(figure, source), rtol=1e-5, atol=1e-5)


def test_a_picture_of_another_size_enters_by_its_tokens_only() -> None:
    made, seen = network(source_exit_skips=True), []
    made.exit.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[4]))
    assert output(made, draw(2, 48, 2, 2)).shape == output(made).shape == (2, 48, 4, 6)
    assert seen == [None, None]


@pytest.mark.parametrize("off", ["source_tokens", "conv_skips"])
def test_it_needs_what_it_builds_on(off: str) -> None:
    with pytest.raises(ValueError, match="source_exit_skips needs source_tokens and conv_skips"):
        toy_config(source_exit_skips=True, **{off: False})

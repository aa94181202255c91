"""Sampling with the prefix kept: exact for every solver, shared between branches, or the plain pass."""

from __future__ import annotations

import pytest
import torch
from omnigen_prefixes import guided, use_of
from pack.dit.omnigen.blocks import torch_attention
from pack.dit.omnigen.cached import cached_velocity
from pack.dit.omnigen.prefix_cache import PrefixCache, bytes_per_token
from pack.dit.omnigen.prefix_entry import shared_rows
from pack.samplers.schedules import uniform_sigmas
from pack.samplers.solvers import SOLVERS
from tiny_omnigen import diffusers_model, own_network, tiny_config


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("known_schedule", [True, False])
def test_cached_equals_uncached_for_every_solver(solver, known_schedule, network, branches):
    sigmas = uniform_sigmas(4)
    noise = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    cache = PrefixCache()
    use = use_of(cache, sigmas.tolist() if known_schedule else ())
    with torch.inference_mode():
        plain = SOLVERS[solver](guided(network, branches, None), noise, sigmas, disable=True)
        cached = SOLVERS[solver](guided(network, branches, use), noise, sigmas, disable=True)
    assert cache.prefills == 3
    torch.testing.assert_close(cached, plain, atol=1e-5, rtol=1e-5)


class CountingRows:
    """Counts the query rows each evaluation computes."""

    def __init__(self, network):
        self.rows, self.masks = [], []
        self.hook = network.llm.layers[0].register_forward_pre_hook(self.count)

    def count(self, module, inputs):
        self.rows.append(inputs[0].shape[1])
        self.masks.append([call.mask is not None for call in inputs[2]])


def test_later_steps_run_target_tokens_only_and_without_a_mask(network, branches):
    sigmas = uniform_sigmas(4)
    cache = PrefixCache()
    use = use_of(cache, sigmas.tolist())
    counting = CountingRows(network)
    noise = torch.randn(1, 4, 6, 6)
    with torch.inference_mode():
        SOLVERS["euler"](guided(network, branches, use), noise, sigmas, disable=True)
        first = list(counting.rows)
        counting.rows.clear()
        counting.masks.clear()
        SOLVERS["euler"](guided(network, branches, use), torch.randn(1, 4, 6, 6), sigmas, disable=True)
    counting.hook.remove()
    assert cache.prefills == 3, "a second run with a new seed pays for no prefix"
    assert counting.rows == [9] * 12
    assert counting.masks == [[False]] * 12
    assert len(first) == 15 and sum(row == 9 for row in first) == 12


def test_text_and_image_branch_share_the_pictures_bit_for_bit(network, branches):
    cache = PrefixCache()
    use = use_of(cache, (1.0,))
    with torch.inference_mode():
        for name in ("image_only", "positive"):
            cached_velocity(
                network, torch.randn(1, 4, 4, 4), torch.ones(1), branches[name], use, torch_attention
            )
    parent, child = cache.entries.values()
    last_picture = branches["positive"].tokens.slots[-1].stop
    assert child.parent is parent
    assert child.shared >= last_picture
    alone = PrefixCache()
    with torch.inference_mode():
        cached_velocity(
            network,
            torch.randn(1, 4, 4, 4),
            torch.ones(1),
            branches["positive"],
            use_of(alone, (1.0,)),
            torch_attention,
        )
    (whole,) = alone.entries.values()
    for layer in range(2):
        rows = whole.layers[layer][0].numbers[:, :, :last_picture]
        theirs = parent.layers[layer][0].numbers[:, :, :last_picture]
        torch.testing.assert_close(theirs, rows, atol=1e-6, rtol=0)
    assert cache.num_bytes < alone.num_bytes * 1.3


def test_shared_rows_stop_before_half_a_picture(branches):
    one, other = branches["image_only"], branches["positive"]
    rows = shared_rows(one.elements, other.elements, one.tokens.slots)
    assert one.elements[:rows] == other.elements[:rows]
    assert rows >= one.tokens.slots[1].stop
    assert shared_rows(one.elements, branches["negative"].elements, one.tokens.slots) == 0
    changed = list(other.elements)
    slot = other.tokens.slots[1]
    changed[slot.start : slot.stop] = ["another picture"] * (slot.stop - slot.start)
    rows = shared_rows(one.elements, tuple(changed), one.tokens.slots)
    assert one.tokens.slots[0].stop <= rows <= slot.start


@pytest.mark.parametrize("batch", [1, 3])
def test_eight_bit_is_half_the_memory_and_close(batch, network, branches):
    noise = torch.randn(batch, 4, 6, 6, generator=torch.Generator().manual_seed(2))
    results, sizes = [], []
    for eight_bit in (False, True):
        cache = PrefixCache()
        use = use_of(cache, eight_bit=eight_bit)
        with torch.inference_mode():
            sigma = torch.full((batch,), 0.7)
            results.append(cached_velocity(network, noise, sigma, branches["positive"], use, torch_attention))
        sizes.append(sum(k.num_bytes + v.num_bytes for e in cache.entries.values() for k, v in e.layers))
    noise_power = (results[0] - results[1]).square().mean()
    assert 10 * torch.log10(results[0].square().mean() / noise_power) >= 45
    length = branches["positive"].length
    assert sizes == [length * bytes_per_token(tiny_config(), 4, bits) for bits in (False, True)]


def test_nowhere_to_keep_it_or_switched_off_is_the_plain_pass(network, branches):
    latent, sigma = torch.randn(1, 4, 4, 4), torch.tensor([0.5])
    for options in ({"placement": lambda size: None}, {"enabled": False}, {"max_bytes": 0}):
        cache = PrefixCache()
        with torch.inference_mode():
            use = use_of(cache, **options)
            result = cached_velocity(network, latent, sigma, branches["positive"], use, torch_attention)
            assert torch.equal(result, network.velocity(latent, sigma, branches["positive"]))
        assert not cache.entries
        assert (cache.warned_in_run == cache.run) is ("placement" in options)


def test_items_with_their_own_times_and_gradients_take_the_plain_pass(network, branches):
    cache = PrefixCache()
    latent = torch.randn(2, 4, 4, 4)
    sigma = torch.tensor([0.5, 0.6])
    with torch.inference_mode():
        result = cached_velocity(network, latent, sigma, branches["positive"], use_of(cache), torch_attention)
        assert torch.equal(result, network.velocity(latent, sigma, branches["positive"]))
    cached_velocity(
        network, latent[:1], sigma[:1], branches["positive"], use_of(cache), torch_attention
    ).sum().backward()
    assert not cache.entries


def test_another_context_or_stretch_is_another_entry(branches):
    config = tiny_config(original_max_position_embeddings=branches["positive"].length + 10)
    network = own_network(diffusers_model(config), config)
    cache = PrefixCache()
    sigma = torch.tensor([0.5])
    prefix = branches["positive"]
    with torch.inference_mode():
        # 4 target tokens stay under the stretch limit, 16 pass it.
        for size, weights in ((4, "a"), (8, "a"), (4, "b")):
            latent = torch.randn(1, 4, size, size)
            use = use_of(cache, weights=weights)
            cached = cached_velocity(network, latent, sigma, prefix, use, torch_attention)
            plain = network.velocity(latent, sigma, prefix)
            torch.testing.assert_close(cached, plain, atol=1e-5, rtol=1e-5)
    assert cache.prefills == 3
    assert all(entry.parent is None for entry in cache.entries.values())

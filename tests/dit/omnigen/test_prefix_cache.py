"""Room for prefixes: the limit holds, earlier pictures make way, and a lack of room is told."""

from __future__ import annotations

import pytest
import torch
from omnigen_prefixes import ONE, TWO, guided, prefix_of, use_of
from pack.dit.omnigen.blocks import torch_attention
from pack.dit.omnigen.cached import cached_velocity
from pack.dit.omnigen.prefix_cache import CacheSettings, PrefixCache, bytes_per_token
from pack.samplers.schedules import uniform_sigmas
from pack.samplers.solvers import SOLVERS
from tiny_omnigen import tiny_config


def test_the_limit_holds_and_the_result_stays(network, branches):
    latent, sigma = torch.randn(1, 4, 4, 4), torch.tensor([0.5])
    cache = PrefixCache()
    cache.start_run()
    limit = bytes_per_token(tiny_config(), 4, False) * (branches["positive"].length + 1)
    use = use_of(cache, (), max_bytes=limit)
    with torch.inference_mode():
        for name in ("positive", "negative"):
            result = cached_velocity(network, latent, sigma, branches[name], use, torch_attention)
            expected = network.velocity(latent, sigma, branches[name])
            torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
            assert cache.num_bytes <= limit
        assert [entry.elements for entry in cache.entries.values()] == [branches["positive"].elements]
        cache.start_run()
        cached_velocity(network, latent, sigma, branches["negative"], use, torch_attention)
    assert [entry.elements for entry in cache.entries.values()] == [branches["negative"].elements]


def test_a_lowered_limit_holds_at_once(network, branches):
    """Also where no other prefix asks for room: what was longest unused goes, what is read next stays."""
    latent, sigma = torch.randn(1, 4, 4, 4), torch.tensor([0.5])
    cache = PrefixCache()

    def run(name, limit):
        cache.start_run()
        with torch.inference_mode():
            use = use_of(cache, (0.5,), max_bytes=limit)
            result = cached_velocity(network, latent, sigma, branches[name], use, torch_attention)
            expected = network.velocity(latent, sigma, branches[name])
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
        assert cache.num_bytes <= limit

    for name in ("negative", "positive"):
        run(name, 2**40)
    own = cache.num_bytes - next(iter(cache.entries.values())).num_bytes
    run("positive", own)
    assert [entry.elements for entry in cache.entries.values()] == [branches["positive"].elements]
    assert cache.prefills == 2
    run("positive", 2**40)
    run("positive", own - 1)
    assert not cache.entries and cache.prefills == 2


@pytest.mark.parametrize("known_schedule", [True, False])
def test_other_schedules_keep_the_limit(known_schedule, network, branches):
    """Each brings sigmas of its own, whose time tokens have to find room too."""
    noise = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    cache, limit = PrefixCache(), 2**40
    for steps in (4, 5, 7, 4):
        cache.start_run()
        sigmas = uniform_sigmas(steps)
        use = use_of(cache, sigmas.tolist() if known_schedule else (), max_bytes=limit)
        with torch.inference_mode():
            plain = SOLVERS["euler"](guided(network, branches, None), noise, sigmas, disable=True)
            cached = SOLVERS["euler"](guided(network, branches, use), noise, sigmas, disable=True)
        torch.testing.assert_close(cached, plain, atol=1e-5, rtol=1e-5)
        if limit == 2**40:
            limit = cache.num_bytes + bytes_per_token(tiny_config(), 4, False)
        assert cache.num_bytes <= limit
    assert cache.prefills == 3, "no prefix makes room for a time token"


def test_eight_bit_counts_time_tokens_in_full_precision(network, branches):
    """They are kept as they are, so that they take more than a token of the prefix."""
    schedule, length = uniform_sigmas(30).tolist(), branches["negative"].length
    small, full = (bytes_per_token(tiny_config(), 4, eight_bit) for eight_bit in (True, False))
    kept = []
    for time_size in (small, full):
        cache = PrefixCache()
        limit = small * length + time_size * len(schedule)
        use = use_of(cache, schedule, eight_bit=True, max_bytes=limit)
        with torch.inference_mode():
            latent, sigma = torch.randn(1, 4, 4, 4), torch.ones(1)
            cached_velocity(network, latent, sigma, branches["negative"], use, torch_attention)
        assert cache.num_bytes <= limit
        kept.append(len(cache.entries))
    assert kept == [0, 1]


def run_prompts(network, cache, prompts, max_bytes):
    """One run for each prompt on the same two pictures; the bytes kept after each."""
    torch.manual_seed(3)
    references = [torch.randn(1, 4, 6, 4), torch.randn(1, 4, 4, 8)]
    latent, sigma = torch.randn(1, 4, 4, 4), torch.tensor([0.5])
    kept = []
    for prompt in prompts:
        cache.start_run()
        prefix = prefix_of(f"{ONE} {TWO} {prompt}", references)
        use = use_of(cache, (0.5,), max_bytes=max_bytes)
        with torch.inference_mode():
            result = cached_velocity(network, latent, sigma, prefix, use, torch_attention)
            torch.testing.assert_close(result, network.velocity(latent, sigma, prefix), atol=1e-5, rtol=1e-5)
        kept.append(cache.num_bytes)
    return kept


def test_a_new_prompt_every_run_keeps_the_limit_and_the_pictures(network):
    words = ["red hat", "green hat", "blue coat", "old car", "new bike", "tall tree", "small cat", "wet dog"]
    prompts = [f"{word} of a long description" for word in words]
    one, two = run_prompts(network, PrefixCache(), prompts[:2], 2**40)
    limit = one + 3 * (two - one)
    cache = PrefixCache()
    kept = run_prompts(network, cache, prompts, limit)
    assert max(kept) <= limit
    first = next(iter(cache.entries.values()))
    assert all(entry.parent in (None, first) for entry in cache.entries.values())
    assert cache.prefills == len(words)


def test_earlier_pictures_make_room_where_memory_is_short(network):
    """What is free beside the entries holds two pictures; there is no other place."""
    torch.manual_seed(4)
    prefixes = [prefix_of(f"{ONE} on a beach", [torch.randn(1, 4, 6, 4)]) for _ in range(4)]
    cache, latent, sigma = PrefixCache(), torch.randn(1, 4, 4, 4), torch.tensor([0.5])
    one = bytes_per_token(tiny_config(), 4, False) * (prefixes[0].length + 1)

    def placement(size):
        return torch.device("cpu") if cache.num_bytes + size <= 2 * one else None

    with torch.inference_mode():
        for prefix in prefixes:
            cache.start_run()
            use = use_of(cache, (0.5,), placement)
            for _ in range(2):
                cached_velocity(network, latent, sigma, prefix, use, torch_attention)
        assert [entry.elements for entry in cache.entries.values()] == [p.elements for p in prefixes[2:]]
        assert cache.prefills == 4
        for prefix in prefixes[:2]:  # of one run: the second finds room where the last run's were
            cached_velocity(network, latent, sigma, prefix, use, torch_attention)
    # Picture 4 belongs to the present run and stays; beside it there is room for one of the others.
    assert [entry.elements for entry in cache.entries.values()] == [
        prefixes[3].elements, prefixes[0].elements,
    ]  # fmt: skip


def test_the_parent_of_what_is_written_makes_no_room(network):
    torch.manual_seed(4)
    references = [torch.randn(1, 4, 6, 4)]
    cache, latent, sigma = PrefixCache(), torch.randn(1, 4, 4, 4), torch.tensor([0.5])
    answers = iter([torch.device("cpu"), None])
    with torch.inference_mode():
        for words in ("on a beach", "in a wood"):
            cache.start_run()
            use = use_of(cache, (0.5,), lambda size: next(answers))
            cached_velocity(
                network, latent, sigma, prefix_of(f"{ONE} {words}", references), use, torch_attention
            )
    assert len(cache.entries) == 1


def test_rows_are_shared_with_who_owns_them(network):
    cache = PrefixCache()
    # Repeated, the first prompt's entry stands behind the second's, which has the same rows in common.
    run_prompts(network, cache, ["red hat", "green hat", "red hat", "blue coat"], 2**40)
    green, red, blue = cache.entries.values()
    assert red.parent is None
    assert green.parent is red
    assert blue.parent is red


def test_a_parent_too_large_for_the_limit_is_not_used(network):
    """A prompt that grows shares rows with its last version, which owns them: the limit ends the chain."""
    prompts = ["a cat " + "and a hat " * count for count in range(6)]
    (limit,) = run_prompts(network, PrefixCache(), prompts[-1:], 2**40)
    cache = PrefixCache()
    assert max(run_prompts(network, cache, prompts, limit)) <= limit
    assert cache.prefills == len(prompts), "every prompt found room"


def test_pictures_first_need_less_than_words_first(network, branches, caplog):
    """The last remedy of the warning: the image-only branch then shares their rows."""
    torch.manual_seed(3)
    references = [torch.randn(1, 4, 6, 4), torch.randn(1, 4, 4, 8)]
    latent, sigma = torch.randn(1, 4, 4, 4), torch.tensor([0.5])
    first, last = (prefix_of(text, references) for text in (f"{ONE} {TWO} hats", f"hats {ONE} {TWO}"))
    limit = bytes_per_token(tiny_config(), 4, False) * (first.length + 12)
    warnings = []
    for prefix in (first, last):
        cache = PrefixCache()
        cache.start_run()
        with torch.inference_mode(), caplog.at_level("WARNING", logger="dreamomni"):
            for branch in (branches["image_only"], prefix) * 2:
                cached_velocity(
                    network, latent, sigma, branch, use_of(cache, (0.5,), max_bytes=limit), torch_attention
                )
        warnings.append(len(caplog.records))
        caplog.clear()
    assert warnings == [0, 1]


def test_time_tokens_are_bounded(network, branches, monkeypatch):
    from pack.dit.omnigen import prefix_entry

    monkeypatch.setattr(prefix_entry, "MAX_TIMES", 4)
    cache = PrefixCache()
    with torch.inference_mode():
        for step in range(10):
            latent, sigma = torch.randn(1, 4, 4, 4), torch.tensor([1 - step / 10])
            cached_velocity(network, latent, sigma, branches["negative"], use_of(cache), torch_attention)
    (entry,) = cache.entries.values()
    assert len(entry.times) == 4


def test_settings_are_checked():
    with pytest.raises(ValueError, match="0 or more bytes, got -1"):
        CacheSettings(max_bytes=-1)

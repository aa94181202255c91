"""The prefix cache: exact for every solver, shared between branches, bounded, and honest about its limits."""

from __future__ import annotations

import pytest
import torch
from pack.dit.omnigen.blocks import torch_attention
from pack.dit.omnigen.cached import CacheUse, cached_velocity
from pack.dit.omnigen.prefix import make_prefix
from pack.dit.omnigen.prefix_cache import CacheSettings, PrefixCache, bytes_per_token, shared_rows
from pack.dit.omnigen.prompt import image_only_prompt, tokenize_prompt
from pack.samplers.schedules import uniform_sigmas
from pack.samplers.solvers import SOLVERS
from tiny_omnigen import byte_tokenizer, diffusers_model, own_network, tiny_config

NAMES = ("negative", "image_only", "positive")
ONE, TWO = "<img><|image_1|></img>", "<img><|image_2|></img>"


def encode(text, first):
    ids = byte_tokenizer().encode(text, add_special_tokens=False).ids
    return [1, *ids] if first else ids


@pytest.fixture(scope="module")
def network():
    return own_network(diffusers_model(tiny_config()), tiny_config())


def prefix_of(prompt, references):
    counts = [latent.shape[-2] * latent.shape[-1] // 4 for latent in references]
    return make_prefix(tokenize_prompt(prompt, counts, encode), references)


@pytest.fixture(scope="module")
def branches():
    torch.manual_seed(3)
    references = [torch.randn(1, 4, 6, 4), torch.randn(1, 4, 4, 8)]
    return {
        "negative": prefix_of("ugly", []),
        "image_only": prefix_of(image_only_prompt(2), references),
        "positive": prefix_of(f"{ONE} {TWO} on a beach, with a long description of what to do", references),
    }


def use_of(cache, schedule=(), placement=lambda size: torch.device("cpu"), weights="w", **settings):
    return CacheUse(cache, CacheSettings(**settings), weights, lambda: schedule, placement)


def guided(network, branches, use):
    """denoised = x - sigma * velocity of the three branches, as DualCFGGuider combines them."""

    def model(x, sigma, **_):
        run = lambda prefix: (
            network.velocity(x, sigma, prefix)
            if use is None
            else cached_velocity(network, x, sigma, prefix, use, torch_attention)
        )
        negative, image_only, positive = (run(branches[name]) for name in NAMES)
        velocity = negative + 1.6 * (image_only - negative) + 2.5 * (positive - image_only)
        return x - sigma.view(-1, 1, 1, 1) * velocity

    return model


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


def test_time_tokens_are_bounded(network, branches, monkeypatch):
    from pack.dit.omnigen import prefix_cache

    monkeypatch.setattr(prefix_cache, "MAX_TIMES", 4)
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

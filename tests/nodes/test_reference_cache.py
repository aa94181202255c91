"""The Reference Cache node, and its stock mode, in ComfyUI's real sampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cached_runs import reference, sampled
from tiny_flux import tiny_flux

pytestmark = pytest.mark.host
ONE, TWO = reference(6, 8, 5), reference(4, 10, 6)
EIGHT = torch.linspace(1, 0, 9)


@pytest.fixture
def model() -> Any:
    return tiny_flux()


def node(model: Any, mode: str, precision: str = "bf16", **options: Any) -> Any:
    from pack.nodes.reference_cache import ReferenceCache

    return ReferenceCache.execute(model, mode, precision, **options).args[0]


def token_counts(model: Any) -> list[int]:
    seen: list[int] = []
    block = model.model.diffusion_model.double_blocks[0]
    block.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["img"].shape[1]), with_kwargs=True
    )
    return seen


def test_off_is_the_plain_model_and_takes_a_cache_away(model: Any) -> None:
    plain = sampled(model, [ONE, TWO])
    assert torch.equal(sampled(node(model, "off"), [ONE, TWO]), plain)
    assert torch.equal(sampled(node(node(model, "exact"), "off"), [ONE, TWO]), plain)
    assert torch.equal(sampled(node(node(model, "stock"), "off"), [ONE, TWO]), plain)


def test_exact_keeps_and_the_input_is_untouched(model: Any) -> None:
    plain, seen = sampled(model, [ONE]), token_counts(model)
    target = node(model, "exact", "8bit")
    sampled(target, [ONE])
    assert seen == [12, 24, 24, 24]
    assert torch.equal(sampled(model, [ONE]), plain)


def test_stock_computes_references_in_full_steps_only(model: Any) -> None:
    seen = token_counts(model)
    sampled(node(model, "stock", warm_up=3, refresh_every=3), [ONE, TWO], sigmas=EIGHT)
    full, cut = 24 + 12 + 10, 24
    assert seen == [full, full, full, cut, cut, full, cut, cut]


def test_stock_with_only_full_steps_is_the_plain_model(model: Any) -> None:
    plain = sampled(model, [ONE, TWO], sigmas=EIGHT)
    assert torch.equal(sampled(node(model, "stock", refresh_every=1), [ONE, TWO], sigmas=EIGHT), plain)
    assert torch.equal(sampled(node(model, "stock", warm_up=8), [ONE, TWO], sigmas=EIGHT), plain)


def test_stock_comes_nearer_with_more_full_steps(model: Any) -> None:
    plain = sampled(model, [ONE, TWO], sigmas=EIGHT)
    errors = [
        float(
            (
                sampled(node(model, "stock", warm_up=count, refresh_every=8), [ONE, TWO], sigmas=EIGHT)
                - plain
            ).norm()
        )
        for count in (1, 4, 7)
    ]
    assert errors[0] > errors[1] > errors[2] > 0


def test_stock_keeps_nothing_between_runs(model: Any) -> None:
    target = node(model, "stock", warm_up=1, refresh_every=100)
    first = sampled(target, [ONE], sigmas=EIGHT)
    sampled(target, [ONE], prompt=3, sigmas=EIGHT)
    sampled(target, [TWO], sigmas=EIGHT)
    assert torch.equal(sampled(target, [ONE], sigmas=EIGHT), first)


def test_stock_never_mixes_guidance_branches(model: Any) -> None:
    """Exchanging two branches that differ in text and references must exchange the results."""
    from tiny_flux import tiny_conditioning

    import comfy.sample

    target = node(model, "stock", warm_up=1, refresh_every=100)
    noise = torch.randn(1, 16, 8, 12, generator=torch.manual_seed(0))
    conds = [tiny_conditioning(0, reference_latents=[ONE]), tiny_conditioning(1, reference_latents=[ONE + 1])]

    def run(scale: float, positive: list, negative: list) -> torch.Tensor:
        return comfy.sample.sample(
            target, noise, 4, scale, "euler", "simple", positive, negative, 0 * noise, seed=0
        )

    # 1.5 a - 0.5 b is the same as -0.5 b + 1.5 a.
    torch.testing.assert_close(run(1.5, *conds), run(-0.5, *reversed(conds)), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("full", "bf16"), "unknown mode 'full'; choose one of exact, stock, off"),
        (("exact", "4bit"), "unknown precision '4bit'; choose bf16 or 8bit"),
    ],
)
def test_unknown_choices_are_named(model: Any, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        node(model, *arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warm_up": 0}, "stock mode needs at least 1 warm-up step, got 0"),
        ({"refresh_every": 0}, "refresh_every must be at least 1, got 0"),
    ],
)
def test_unusable_stock_settings_are_named(model: Any, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        node(model, "stock", **options)


def test_a_lora_in_exact_mode_is_noted_and_stays_noted(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "dreamomni"]

    name = "diffusion_model.img_in.weight"
    patched = model.clone()
    patched.add_patches({name: ("diff", (torch.zeros_like(model.model.state_dict()[name]),))})
    note = "LoRA found: exact is for LoRAs trained with 'references for less'; others lose likeness."
    report = "references: {} written, {} reused, 0 MB kept"
    with caplog.at_level("INFO", logger="dreamomni"):
        sampled(node(model, "exact"), [ONE])
        assert told() == ["exact: references are computed once, when a run begins.", report.format(1, 0)]
        caplog.clear()
        sampled(node(patched, "exact"), [ONE])
    assert told() == [note, f"{report.format(0, 1)}\n{note}"]


def test_no_note_of_another_mode_or_run_stays(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A node keeps its last text until another one comes."""
    with caplog.at_level("INFO", logger="dreamomni"):
        target = node(model, "exact")
        sampled(target, [ONE])
        sampled(target, [])
        assert caplog.messages[-1] == "no references in this run: nothing written, nothing read"
        node(model, "off")
    assert caplog.messages[-1] == "off: nothing is kept."

"""Guidance limited to an interval: fewer passes, and exactly the guided or the positive prediction."""

from __future__ import annotations

import pytest
import torch
from tiny_omnigen import tiny_config, write_official

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    from pack.model_loaders.omnigen import load_omnigen

    return load_omnigen(write_official(tmp_path_factory.mktemp("omnigen"), tiny_config()), "fp32")


def branches(processor):
    return [[[processor.tokenize(text, []).as_tensor(), {}]] for text in ("a cat", "ugly", "a thing")]


def dual(model, conds, sigmas, noise):
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    import comfy.samplers

    guider = DualCFGGuider.execute(model, conds[0], conds[2], conds[1], 2.5, 1.6, "regular").args[0]
    with torch.inference_mode():
        return guider.sample(
            noise,
            torch.zeros_like(noise),
            comfy.samplers.sampler_object("euler"),
            sigmas,
            disable_pbar=True,
        )


def plain(model, conds, sigmas, noise, scale=2.5):
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conds[0], conds[1])
    guider.set_cfg(scale)
    with torch.inference_mode():
        return guider.sample(
            noise,
            torch.zeros_like(noise),
            comfy.samplers.sampler_object("euler"),
            sigmas,
            disable_pbar=True,
        )


def counted(model):
    import comfy.patcher_extension

    calls = []

    def count(executor, *args, **kwargs):
        calls.append(1)
        return executor(*args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "count", count)
    return clone, calls


def test_passes_and_result_inside_and_outside(loaded):
    from pack.nodes.omnigen_model import GuidanceInterval

    model, processor = loaded
    conds, noise = branches(processor), torch.randn(1, 4, 4, 4)
    one_step = torch.tensor([0.5, 0.0])
    for run, passes in ((dual, 3), (plain, 2)):
        inside, calls = counted(GuidanceInterval.execute(model, 0.6, 0.2).args[0])
        torch.testing.assert_close(run(inside, conds, one_step, noise), run(model, conds, one_step, noise))
        assert len(calls) == passes
        outside, calls = counted(GuidanceInterval.execute(model, 0.4, 0.2).args[0])
        positive = plain(model, conds, one_step, noise, scale=1.0)
        torch.testing.assert_close(run(outside, conds, one_step, noise), positive, atol=1e-5, rtol=1e-5)
        assert len(calls) == 1


def test_the_fast_preset_stays_within_40_passes(loaded):
    """16 evaluations with guidance down to sigma 0.25, as the help page offers it."""
    from pack.nodes.omnigen_model import GuidanceInterval

    model, processor = loaded
    fast, calls = counted(GuidanceInterval.execute(model, 1.0, 0.25).args[0])
    dual(fast, branches(processor), torch.linspace(1, 0, 17), torch.randn(1, 4, 4, 4))
    assert len(calls) == 12 * 3 + 4 == 40


def test_an_empty_interval(loaded):
    from pack.nodes.omnigen_model import GuidanceInterval

    with pytest.raises(ValueError, match=r"from sigma 0\.2 down to 0\.5 is empty"):
        GuidanceInterval.execute(loaded[0], 0.2, 0.5)


def test_a_model_with_other_sigmas_is_refused(loaded):
    """SD and SDXL sigmas go up to 14.6: all above 1 would silently lose their guidance."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3
    from pack.nodes.omnigen_model import GuidanceInterval

    model = loaded[0]
    with pytest.raises(ValueError, match=r"is for rectified-flow models .* has sigmas up to 14\.6"):
        GuidanceInterval.execute(ModelSamplingDiscrete().patch(model, "eps", False)[0], 1.0, 0.25)
    GuidanceInterval.execute(ModelSamplingSD3().patch(model, 3.0)[0], 1.0, 0.25)


def sampled(guider, noise):
    import comfy.samplers

    sampler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        return guider.sample(
            noise, torch.zeros_like(noise), sampler, torch.tensor([0.5, 0.0]), disable_pbar=True
        )


def test_perp_neg_gets_its_positive_outside(loaded):
    """Its branches are (positive, negative, empty): the last one is not what it leads to."""
    from comfy_extras.nodes_perpneg import PerpNegGuider
    from pack.nodes.omnigen_model import GuidanceInterval

    model, processor = loaded
    positive, negative, empty = branches(processor)
    noise = torch.randn(1, 4, 4, 4)
    outside, calls = counted(GuidanceInterval.execute(model, 0.4, 0.2).args[0])
    result = sampled(PerpNegGuider.execute(outside, positive, negative, empty, 4.0, 1.0).args[0], noise)
    expected = plain(model, (positive, negative), torch.tensor([0.5, 0.0]), noise, scale=1.0)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    assert len(calls) == 1
    inside = GuidanceInterval.execute(model, 0.6, 0.2).args[0]
    pair = [
        sampled(PerpNegGuider.execute(patcher, positive, negative, empty, 4.0, 1.0).args[0], noise)
        for patcher in (inside, model)
    ]
    torch.testing.assert_close(*pair)


def test_a_guider_without_a_positive_is_refused(loaded):
    from pack.nodes.omnigen_model import GuidanceInterval

    import comfy.samplers

    class Other(comfy.samplers.CFGGuider):
        """Calls its conditionings by other names."""

    model, processor = loaded
    guider = Other(GuidanceInterval.execute(model, 0.4, 0.2).args[0])
    guider.inner_set_conds({"first": branches(processor)[0]})
    with pytest.raises(ValueError, match=r"Other names no positive conditioning \(it has first\)"):
        sampled(guider, torch.randn(1, 4, 4, 4))


@pytest.mark.parametrize("behind", [True, False])
def test_other_wrappers_are_called_and_samplers_get_an_equal_second_branch(behind, loaded):
    """`euler_cfg_pp` steps along the second branch, also where only one is evaluated."""
    from pack.nodes.omnigen_model import GuidanceInterval

    import comfy.patcher_extension
    import comfy.samplers

    model, processor = loaded
    conds, noise, seen = branches(processor), torch.randn(1, 4, 4, 4), []

    def note(executor, *args):
        seen.append(args[1])
        return executor(*args)

    kind = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
    other = model.clone()
    if not behind:
        other.add_wrapper_with_key(kind, "note", note)
    other = GuidanceInterval.execute(other, 0.4, 0.2).args[0]
    if behind:
        other.add_wrapper_with_key(kind, "note", note)
    results = []
    for patcher, pair in ((other, conds[:2]), (model, (conds[0], conds[0]))):
        guider = comfy.samplers.CFGGuider(patcher)
        guider.set_conds(*pair)
        guider.set_cfg(2.0)
        with torch.inference_mode():
            results.append(
                guider.sample(
                    noise,
                    torch.zeros_like(noise),
                    comfy.samplers.sampler_object("euler_cfg_pp"),
                    torch.tensor([0.9, 0.5, 0.0]),
                    disable_pbar=True,
                )
            )
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("start", "end", "sigmas", "guided"),
    [
        (1.0, 0.3, [1.0, 0.5, 0.3, 0.1, 0.0], [True, True, False, False]),
        (0.8, 0.25, [1.0, 0.8, 0.5, 0.25, 0.0], [False, True, True, False]),
        # What ComfyUI's shifted schedules begin with for many shifts.
        (1.0, 0.25, [1.0000001, 0.5, 0.2, 0.0], [True, True, False]),
    ],
)
def test_the_borders_hold_in_float32(loaded, start, end, sigmas, guided):
    from pack.nodes.omnigen_model import GuidanceInterval

    model, processor = loaded
    limited, calls = counted(GuidanceInterval.execute(model, start, end).args[0])
    plain(limited, branches(processor), torch.tensor(sigmas), torch.randn(1, 4, 4, 4))
    assert len(calls) == sum(2 if both else 1 for both in guided)


def cached(model, name):
    """The MODEL with a stock cache of steps that skips all it may."""
    import comfy_extras.nodes_easycache as stock

    return getattr(stock, f"{name}Node").execute(model, 3.0, 0.15, 0.95, False).args[0]


@pytest.mark.parametrize("first", [True, False])
def test_easycache_without_a_negative_from_the_first_step_is_refused(loaded, first):
    """It keeps one difference for each branch of the first steps, and looks for the negative's later."""
    from pack.nodes.omnigen_model import GuidanceInterval

    model, processor = loaded
    late = GuidanceInterval.execute(cached(model, "EasyCache") if first else model, 0.8, 0.2).args[0]
    target, calls = counted(late if first else cached(late, "EasyCache"))
    conds, noise = branches(processor), torch.randn(1, 4, 4, 4)
    with pytest.raises(ValueError, match=r"EasyCache needs the negative from the first step on.*LazyCache"):
        plain(target, conds, torch.linspace(1, 0, 13), noise)
    assert not calls


@pytest.mark.parametrize(
    ("name", "start", "highest"), [("EasyCache", 1.0, 1.0), ("EasyCache", 0.8, 0.8), ("LazyCache", 0.8, 1.0)]
)
def test_stock_caches_that_get_along_with_the_interval(loaded, name, start, highest):
    """EasyCache too, where guidance is on from the first step, also of a run that begins in the middle."""
    from pack.nodes.omnigen_model import GuidanceInterval

    model, processor = loaded
    target = cached(GuidanceInterval.execute(model, start, 0.2).args[0], name)
    conds, noise = branches(processor), torch.randn(1, 4, 4, 4)
    assert plain(target, conds, torch.linspace(highest, 0, 13), noise).isfinite().all()

"""The VLM nodes in the real host, on tiny real models."""

from __future__ import annotations

import os
import shutil
import threading
import time

import pytest
import torch
from tiny_vlm import SCRIPTED_PROMPT

pytestmark = pytest.mark.host


def picture(seed: int = 0, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 48, 64, 3, generator=torch.Generator().manual_seed(seed))


def references(*images: torch.Tensor, task: str = "edit"):
    from pack.dit.references import ResizeRule, Task, build_references

    return build_references(Task(task), ResizeRule.NONE, images)


@pytest.fixture
def vlm(vlm_folder, models_dir):
    """A scripted VLM through the loader node."""
    return opened(vlm_folder, models_dir, "scripted")


def opened(vlm_folder, models_dir, family: str, precision: str = "auto"):
    from pack.nodes.vlm import LoadVLM

    shutil.copytree(vlm_folder(family), models_dir / "vlm" / family, copy_function=os.link)
    return LoadVLM.execute(family, precision).args[0]


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch):
    from pack.nodes import vlm as nodes
    from pack.vlm.rewrite import ReplyCache

    monkeypatch.setattr(nodes, "REPLIES", ReplyCache())


def rewrite(vlm, refs, instruction: str = "Make it red.", limit: int = 64, **options):
    from pack.nodes.vlm import RewritePrompt

    with torch.inference_mode():
        return RewritePrompt.execute(refs, instruction, limit, vlm=vlm, **options).args


def count_evaluations(vlm) -> list[int]:
    calls: list[int] = []
    vlm.network.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("task", ["edit", "generate"])
def test_the_prompt_is_the_answer_without_its_tags(vlm, task: str) -> None:
    prompt, raw = rewrite(vlm, references(picture(), picture(1), task=task))
    assert prompt == SCRIPTED_PROMPT
    assert raw == f"<edit>{SCRIPTED_PROMPT}</edit>\n"


def test_a_second_identical_call_evaluates_nothing_even_on_a_fresh_handle(vlm) -> None:
    from pack.model_loaders.vlm import LoadedVLM

    calls = count_evaluations(vlm)
    first = rewrite(vlm, references(picture()))
    assert len(calls) == 15
    fresh = LoadedVLM(vlm.folder, "auto", vlm.load_device, vlm.offload_device)
    assert rewrite(fresh, references(picture())) == first
    assert len(calls) == 15
    assert "patcher" not in vars(fresh)


@pytest.mark.parametrize(
    "change",
    [
        {"instruction": "Make it blue."},
        {"task": "generate"},
        {"seed": 1},
        {"limit": 65},
    ],
)
def test_any_change_asks_the_model_again(vlm, change: dict) -> None:
    calls = count_evaluations(vlm)
    rewrite(vlm, references(picture()))
    asked = len(calls)
    refs = references(picture(change.get("seed", 0)), task=change.get("task", "edit"))
    rewrite(vlm, refs, change.get("instruction", "Make it red."), change.get("limit", 64))
    assert len(calls) == 2 * asked


def test_the_vlm_sees_kontext_sizes_whatever_the_references_have(vlm) -> None:
    sizes: list[tuple] = []
    ask = vlm.generate_text
    vlm.generate_text = lambda text, images, *rest: (
        sizes.extend(tuple(image.shape) for image in images) or ask(text, images, *rest)
    )
    rewrite(vlm, references(picture(), torch.rand(1, 200, 80, 3)))
    assert sizes == [(1, 880, 1184, 3), (1, 1568, 672, 3)]


def test_without_pictures_the_instruction_goes_on_and_the_node_says_so(caplog) -> None:
    with caplog.at_level("INFO", logger="dreamomni"):
        prompt, raw = rewrite(None, references(task="generate"), "A cat.")
        edited, note = rewrite(None, references(task="edit"), "A cat.")
    assert prompt == edited == "A cat."
    assert "No pictures: the instruction is used as it is." in raw
    assert "There is nothing to edit: connect image_1." in note
    assert "nothing to edit" in caplog.text


def test_the_node_always_says_where_the_prompt_is_from(vlm, caplog, monkeypatch) -> None:
    """It keeps its last text until another one comes, and so does its text box."""
    from pack.nodes import vlm as nodes

    texts: list[str] = []
    monkeypatch.setattr(nodes, "show_live_text", lambda node, text: texts.append(text))
    with caplog.at_level("INFO", logger="dreamomni"):
        rewrite(None, references(picture()), rewrite=False)
        off, shown = caplog.messages[-1], texts[-1]
        rewrite(vlm, references(picture(batch=2)))
        asked, written = (line for line in caplog.messages if "VLM" in line)
    assert (off, shown) == ("Rewriting is off: the instruction is used as it is.", "")
    assert asked == "The VLM is asked. image_1 is a batch of 2: the prompt is made for its first."
    assert written.startswith("Written by the VLM: 15 tokens. image_1 is a batch of 2")
    assert texts[-1] == f"<edit>{SCRIPTED_PROMPT}</edit>\n"


def test_bypass_and_a_hand_edited_prompt_do_not_want_the_vlm() -> None:
    from pack.nodes.vlm import RewritePrompt

    refs = references(picture())
    assert rewrite(None, refs, "As I say.", rewrite=False)[0] == "As I say."
    assert rewrite(None, refs, "As I say.", edited_prompt="My own.")[0] == "My own."
    status = RewritePrompt.check_lazy_status
    options = {"references": refs, "instruction": "x", "max_new_tokens": 64, "vlm": None}
    assert status(**options) == ["vlm"]
    assert status(**{**options, "vlm": object()}) == []
    assert status(**options, rewrite=False) == []
    assert status(**options, edited_prompt="My own.") == []
    assert status(**{**options, "references": references()}) == []


def test_a_vlm_that_is_not_connected_is_not_waited_for() -> None:
    """As the host gives the inputs: a link that waits is None, an input without a link is not there."""
    import execution
    from pack.nodes.vlm import RewritePrompt

    refs = references(picture())
    waiting = {"references": refs, "instruction": "x", "max_new_tokens": 64, "vlm": ["4", 0]}
    for inputs, wanted in ((waiting, ["vlm"]), ({k: v for k, v in waiting.items() if k != "vlm"}, [])):
        given, missing, *_ = execution.get_input_data(inputs, RewritePrompt, "7")
        assert "vlm" not in missing or given["vlm"] == (None,)
        assert (
            RewritePrompt.check_lazy_status(**{name: values[0] for name, values in given.items()}) == wanted
        )


def test_a_graph_without_a_vlm_is_valid() -> None:
    """Else ComfyUI would refuse the bypass before the node is asked."""
    from pack.nodes.vlm import RewritePrompt

    inputs = RewritePrompt.INPUT_TYPES()
    assert "vlm" in inputs["optional"] and "vlm" not in inputs["required"]


def test_an_empty_instruction_and_a_missing_vlm_are_refused(vlm) -> None:
    with pytest.raises(ValueError, match="the instruction is empty"):
        rewrite(vlm, references(picture()), " ")
    with pytest.raises(ValueError, match="no VLM is connected"):
        rewrite(None, references(picture()))


def test_a_reply_cut_by_the_limit_is_an_error(vlm) -> None:
    from pack.vlm.reply import ReplyFormatError

    with pytest.raises(ReplyFormatError, match=r"cut off by the token limit.*<edit>Put the bag"):
        rewrite(vlm, references(picture()), limit=8)


def test_an_untuned_vlm_is_an_error_with_its_reply(vlm_folder, models_dir) -> None:
    from pack.vlm.reply import ReplyFormatError

    vlm = opened(vlm_folder, models_dir, "qwen2_vl")
    with pytest.raises(ReplyFormatError, match="Reply: "):
        rewrite(vlm, references(picture()), limit=16)


def test_a_batch_of_sources_is_rewritten_for_its_first_and_the_node_says_so(vlm, caplog) -> None:
    with caplog.at_level("INFO", logger="dreamomni"):
        rewrite(vlm, references(picture(batch=2)))
    assert "image_1 is a batch of 2: the prompt is made for its first." in caplog.text


def test_progress_comes_with_every_token_and_text_while_it_grows(vlm, monkeypatch) -> None:
    from pack.nodes import vlm as nodes

    import comfy.utils

    bars: list[tuple[int, int]] = []
    texts: list[str] = []
    hook = lambda value, total, preview, node_id=None: bars.append((value, total))
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    # Newer ComfyUI sends only some of what comes quickly.
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0, raising=False)
    monkeypatch.setattr(nodes, "SECONDS_PER_TEXT", 0.0)
    monkeypatch.setattr(nodes, "show_live_text", lambda node, text: texts.append(text))
    rewrite(vlm, references(picture()))
    assert bars == [(done, 64) for done in range(16)]
    assert "<edit>Put the" in texts
    assert texts[-1] == f"<edit>{SCRIPTED_PROMPT}</edit>\n"


def test_cancel_stops_within_a_second(vlm_folder, models_dir) -> None:
    import comfy.model_management as mm

    vlm = opened(vlm_folder, models_dir, "qwen2_5_vl")
    vlm.network.generation_config.eos_token_id = []
    pressed: list[float] = []

    def press() -> None:
        pressed.append(time.monotonic())
        mm.interrupt_current_processing(True)

    timer = threading.Timer(0.5, press)
    timer.start()
    with pytest.raises(mm.InterruptProcessingException):
        rewrite(vlm, references(picture()), limit=20000)
    assert time.monotonic() - pressed[0] < 1
    mm.interrupt_current_processing(False)


def test_encode_gives_states_mask_and_picture_of_each_token(vlm) -> None:
    from pack.nodes.vlm import VLMEncode

    refs = references(picture(), picture(1))
    ((tokens, extras),) = VLMEncode.execute(vlm, "a cat", refs).args[0]
    assert tokens.shape[:2] == extras["attention_mask"].shape == extras["dreamomni_image_index"].shape
    assert extras["dreamomni_image_index"].unique().tolist() == [0, 1, 2]
    assert extras.keys() == {"attention_mask", "dreamomni_image_index"}
    ((plain, _),) = VLMEncode.execute(vlm, "", None).args[0]
    assert plain.shape[1] < tokens.shape[1]


def test_encode_reads_nothing_at_all_in_the_plain_template(vlm) -> None:
    from pack.nodes.vlm import VLMEncode

    ((tokens, extras),) = VLMEncode.execute(vlm, "", None, template="plain").args[0]
    assert tokens.shape[1] == extras["attention_mask"].sum() > 0
    ((space, _),) = VLMEncode.execute(vlm, " ", None, template="plain").args[0]
    assert torch.equal(tokens, space)


def test_an_unknown_folder_is_named(models_dir) -> None:
    from pack.nodes.vlm import LoadVLM

    with pytest.raises(FileNotFoundError, match="no model folder 'missing'"):
        LoadVLM.execute("missing", "auto")

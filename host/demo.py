"""Real edits from nothing: the demo workflows on the pack's small model, on a real server."""

from __future__ import annotations

import copy
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .client import Client, PromptError
from .environment import child_environment
from .places import DEMO_BASE, OUTPUT, PACK_FOLDER, ROOT, SetupError, environment_program
from .prompt import MUTED, widget_slots, workflow_to_prompt
from .server import Server, has_gpu

MODEL = ROOT / "assets" / "small"
CASES = ROOT / "assets" / "demo"
SHEET = OUTPUT / "demo.jpg"
README_PICTURE = ROOT / "docs" / "demo.jpg"
THUMBNAIL_ROWS = 2
EDIT, REFERENCE_EDIT, GENERATE, SWITCH = "demo-edit", "demo-reference-edit", "demo-generate", "demo-switch"
PICTURE, INSTRUCTION, SAVED = "DreamOmniExamplePicture", "DreamOmniVLMEncode", "SaveImage"
HONEST_WORD = (
    "The small model draws 32 x 32 pixels and is not always right: compare with the last one of each row.\n"
    "docs/small-model.md says how often. For real pictures put the models of the README into ComfyUI."
)
Row = dict[str, Any]


def run_demo(*, serve: bool, port: int, redraw: bool = False) -> int:
    """Run the four workflows, leave their pictures and one sheet in output/; an exit code.

    With `redraw` README's picture and the thumbnails are drawn too; with `serve` ComfyUI stays open.
    """
    if not MODEL.is_dir():
        raise SetupError(
            f"{MODEL.relative_to(ROOT)} is missing; get the whole repository, or make the model with "
            "`python dev.py train-small` (hours)"
        )
    print("Starting ComfyUI ...", flush=True)
    with Server(DEMO_BASE, cpu=not has_gpu(), port=port if serve else None, output=OUTPUT) as server:
        start, rows = time.monotonic(), told_rows(server)
        print(
            f"{len(rows)} requests in {time.monotonic() - start:.0f} s; one a row: {draw_sheet(rows, SHEET)}"
        )
        print(HONEST_WORD)
        if redraw:
            redraw_shipped(rows)
        if serve:
            print(f"\nComfyUI is open with a workflow loaded: {template_address(server.client)}")
            print("Ctrl+C ends it.", flush=True)
            stay_open(server)
    return 0


def told_rows(server: Server) -> list[Row]:
    """The rows of the sheet, each said when it is done; SetupError with the server's words if one fails."""
    rows = []
    try:
        for row in demo_rows(server):
            print(f"{row['heading']}: {row['text']}", flush=True)
            rows.append(row)
    except (PromptError, OSError) as error:
        raise SetupError(
            f"the demo failed: {error}\nThe end of {server.log}:\n{server.log_tail()}"
        ) from error
    return rows


def read_cases() -> list[Row]:
    """What is asked: instruction, source, references and the right answer, in the order of the sheet."""
    lines = (CASES / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def workflow_for(case: Row) -> str:
    """The workflow a case is run with."""
    if case["source"] is None:
        return GENERATE
    return REFERENCE_EDIT if case["references"] else EDIT


def read_workflow(name: str) -> dict[str, Any]:
    """A shipped workflow."""
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def demo_rows(server: Server) -> Iterator[Row]:
    """Run every case, and the switch on the first case with a reference; rows of the sheet."""
    info, cases = server.client.object_info(), read_cases()
    for case in cases:
        yield answered(server, info, case, workflow_for(case))
    case = next(case for case in cases if workflow_for(case) == REFERENCE_EDIT)
    yield answered(server, info, case, SWITCH)


def answered(server: Server, info: dict[str, Any], case: Row, name: str) -> Row:
    """A case through a workflow, as a row: its pictures, what came out, the right answer."""
    workflow = asked(read_workflow(name), info, case)
    titles = {str(node["id"]): node["title"] for node in workflow["nodes"] if node["type"] == SAVED}
    outputs = server.client.run(workflow_to_prompt(workflow, info), workflow)
    pictures = [(f"picture {n}", CASES / path) for n, path in enumerate(input_pictures(case), 1)]
    for key in sorted(titles, key=int):
        (entry,) = outputs[key]["images"]
        pictures.append((titles[key], server.output / entry["subfolder"] / entry["filename"]))
    pictures += [("right answer", CASES / case["target"])]
    return {
        "heading": name,
        "text": case["instruction"],
        "pictures": [(n, str(path)) for n, path in pictures],
    }


def input_pictures(case: Row) -> list[str]:
    """Source and references of a case, as the instruction counts them."""
    return [path for path in (case["source"], *case["references"]) if path is not None]


def asked(workflow: dict[str, Any], info: dict[str, Any], case: Row) -> dict[str, Any]:
    """A copy of a demo workflow with the pictures and the instruction of a case; other pictures are muted."""
    changed = copy.deepcopy(workflow)
    names = [Path(path).stem for path in input_pictures(case)]
    for node in sorted(changed["nodes"], key=lambda node: node["id"]):
        if node["type"] == INSTRUCTION:
            set_widget(node, info, "prompt", case["instruction"])
        elif node["type"] == PICTURE:
            node["mode"] = 0 if names else MUTED
            if names:
                set_widget(node, info, "picture", names.pop(0))
    assert not names, f"{case['id']} has more pictures than its workflow"
    return changed


def set_widget(node: dict[str, Any], info: dict[str, Any], name: str, value: object) -> None:
    """Type a value into a node of a saved workflow."""
    node["widgets_values"][widget_slots(info[node["type"]]).index(name)] = value


def draw_sheet(rows: list[Row], path: Path, side: int = 192, across: int = 8) -> Path:
    """One picture of all rows, drawn by the environment's Pillow: pictures of `side`, `across` in a line."""
    # -P: else Python would look for installed packages among the program's neighbours first.
    command = [environment_program("python"), "-P", ROOT / "training" / "contact_sheet.py", path]
    command += [str(side), str(across)]
    result = subprocess.run(
        command, input=json.dumps(rows), capture_output=True, text=True, env=child_environment()
    )
    if result.returncode:
        raise SetupError(f"could not draw the sheet:\n{result.stderr}")
    return path


def redraw_shipped(rows: list[Row]) -> None:
    """README's picture, and the first rows of each workflow as its thumbnail."""
    paths = [draw_sheet(rows, README_PICTURE, side=96)]
    for name in dict.fromkeys(row["heading"] for row in rows):
        of_name = [row for row in rows if row["heading"] == name]
        across = max(len(row["pictures"]) for row in of_name)
        thumbnail = ROOT / "workflows" / f"{name}.jpg"
        paths.append(draw_sheet(of_name[:THUMBNAIL_ROWS], thumbnail, side=128, across=across))
    for path in paths:
        print(f"drew {path.relative_to(ROOT)} ({path.stat().st_size // 1000} kB)")


def template_address(client: Client) -> str:
    """The address that opens the frontend with the pack's first demo workflow."""
    return f"{client.url}/?template={EDIT}&source={PACK_FOLDER}"


def stay_open(server: Server) -> None:
    """Return when the user presses Ctrl+C; SetupError if ComfyUI ends before."""
    assert server.process is not None
    try:
        server.process.wait()
    except KeyboardInterrupt:
        print()
        return
    raise SetupError(f"ComfyUI has ended; the end of {server.log}:\n{server.log_tail()}")

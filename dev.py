#!/usr/bin/env python3
"""One door for newcomers and developers; needs nothing but Python 3.11 and the network the first time.

    python dev.py demo           from an empty folder to pictures in output/
    python dev.py test           every check and test (or --fast, --newer, --e2e, --browser)
    python dev.py bench [topic]  the benchmarks
    python dev.py train-small    train the small model from nothing (hours on a CPU; goes on where it stopped)
    python dev.py evaluate DIR   judge a model folder, or answers to held-out edits (--help for its options)
    python dev.py ablate [a ...] put the papers' claims to the test on small networks (--help)
    python dev.py locales        write locales/, node_list.json and README tables from the nodes
    python dev.py check          ruff and the type check alone

COMFYUI_DIR chooses another ComfyUI than the pinned one.
"""

from __future__ import annotations

import argparse
import signal
import sys

from host.places import ROOT, SetupError

SCRIPTS = {
    "train-small": "training/recipes/run.py",
    "evaluate": "bench/evaluate.py",
    "ablate": "bench/ablate.py",
}
"""Commands that hand their options on to a script."""


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The command, its options, and for `test` whatever is meant for pytest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="run the demo workflows, leave their pictures in output/")
    demo.add_argument("--serve", action="store_true", help="keep ComfyUI open afterwards")
    demo.add_argument("--redraw", action="store_true", help="also README's picture and the thumbnails")
    demo.add_argument("--port", type=int, default=8188, help="port of --serve (8188)")
    test = commands.add_parser("test", help="run the checks and tests; further options go to pytest")
    part = test.add_mutually_exclusive_group()
    for name in ("fast", "newer", "e2e", "browser"):
        part.add_argument(f"--{name}", dest="part", action="store_const", const=name)
    bench = commands.add_parser("bench", help="run the benchmarks")
    bench.add_argument("topic", nargs="?")
    bench.add_argument("--model", help="model folder, for topics that measure one")
    bench.add_argument("--out", help="folder for JSON files and pictures of the tables")
    for name in SCRIPTS:
        commands.add_parser(name, add_help=False, help=f"further options: dev.py {name} --help")
    commands.add_parser("locales", help="write locales/, node_list.json and README tables")
    commands.add_parser("check", help="ruff and the type check")
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("test", *SCRIPTS):
        parser.error(f"unknown: {' '.join(rest)}")
    return options, rest


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Do what was asked; the exit code."""
    if options.command == "test":
        from host.testing import run_tests

        return run_tests(options.part, rest)
    from host.environment import ensure_environment, run_child

    python = ensure_environment()
    if options.command == "check":
        from host.checks import check

        return check()
    if options.command == "bench":
        command = [python, ROOT / "bench" / "run.py", *filter(None, [options.topic])]
        for name in ("model", "out"):
            value = getattr(options, name)
            command += [f"--{name}", value] if value else []
        return run_child(command)
    if options.command in SCRIPTS:
        return run_child([python, ROOT / SCRIPTS[options.command], *rest])
    if options.command == "locales":
        from host.locales import write_locales

        return write_locales()
    from host.demo import run_demo

    return run_demo(serve=options.serve, port=options.port, redraw=options.redraw)


if __name__ == "__main__":
    # Being asked to end is no reason to leave a server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # A script's background jobs ignore Ctrl+C and hand that on; the programs we start are ended by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(run(*parse()))
    except SetupError as error:
        sys.exit(f"dev.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)

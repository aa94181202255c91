"""A process that writes parts of a dataset; started as a script with a job on its standard input.

It imports neither torch nor ComfyUI, so that it starts in a fraction of a second, and it works the same
wherever the pack lies and whatever the host's main module is.
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path

PACK = "dreamomni_worker_pack"
LOADER = Path(__file__).resolve().parents[1] / "pack_loader.py"


def say(**values: object) -> None:
    """One line of JSON to the parent; raises BrokenPipeError if it is gone, which ends the worker."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Write the parts of the job on standard input and tell every finished sample."""
    runpy.run_path(str(LOADER))["load_pack"](PACK, __file__)
    generate = importlib.import_module(f"{PACK}.training.synthesis.generate")
    samples = importlib.import_module(f"{PACK}.training.synthesis.samples")
    order = json.loads(sys.stdin.readline())
    job = generate.job_from_json(order["job"])
    synthesizer = samples.Synthesizer(job.config)
    try:
        for part in order["parts"]:
            generate.write_part(job, synthesizer, part, lambda done, sample: say(samples=1), 0)
    except (OSError, ValueError) as error:
        say(error=str(error.args[-1] if isinstance(error, OSError) else error), kind=type(error).__name__)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

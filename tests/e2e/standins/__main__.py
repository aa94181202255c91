"""`python tests/e2e/standins WORKFLOW BASE`: write the stand-ins, print the rules for the prompt."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def main(name: str, base: str) -> None:
    sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "e2e")]
    # Loads the pack and puts the host on the path, as for the tests.
    import conftest  # noqa: F401

    from standins import stand_ins

    chosen = stand_ins()[name]
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    chosen.prepare(Path(base), workflow)
    print(json.dumps(chosen.rules()))


if __name__ == "__main__":
    main(*sys.argv[1:])

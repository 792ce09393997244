"""Try damaged videos, pictures, subtitles, memories, checkpoints, records and result files, by seed.

    python scripts/fuzz.py --minutes 10                       all kinds in turn
    python scripts/fuzz.py --kind memory --tries 2000 --output memory.json
    python scripts/fuzz.py --kind video --seed 123 --tries 1  one that was found

Every try must end in a right result or in one typed error of one line. What does not is printed with its seed (two of
those that begin alike); then the status is 1. The suite runs a minute of it (tests/fuzz).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "fuzz")]

from targets import TARGETS, campaign  # noqa: E402  (found by the path above)
from tqdm import tqdm  # noqa: E402

_SHOWN = 2  # finds that begin alike


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", nargs="+", default=[*TARGETS], choices=[*TARGETS], help="default: all")
    parser.add_argument("--minutes", type=float, help="time for all kinds together")
    parser.add_argument("--tries", type=int, help="tries of each kind")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--output", type=Path, help="JSON file of the report")
    given = parser.parse_args()
    if given.minutes is None and given.tries is None:
        given.minutes = 1.0
    report, bad = {}, 0
    for name in given.kind:
        stop = None if given.minutes is None else time.monotonic() + 60 * given.minutes / len(given.kind)
        outcomes: Counter[str] = Counter()
        finds, kinds = [], Counter()
        with tempfile.TemporaryDirectory() as folder:
            seeds = itertools.count(given.seed)
            for seed, outcome in tqdm(campaign(name, Path(folder), seeds), desc=name, unit="try", disable=None):
                is_right = outcome in ("read", "refused")
                outcomes[outcome if is_right else "bad"] += 1
                if not is_right:
                    finds.append({"seed": seed, "outcome": outcome[:500]})
                    kinds[outcome[:60]] += 1
                    if kinds[outcome[:60]] <= _SHOWN:
                        print(f"{name}, seed {seed}: {outcome[:500]}", flush=True)
                over = stop is not None and time.monotonic() > stop
                if over or (given.tries is not None and sum(outcomes.values()) >= given.tries):
                    break
        report[name] = {"tries": sum(outcomes.values()), **outcomes, "finds": finds}
        bad += len(finds)
        print(f"{name}: {json.dumps(dict(outcomes))}", flush=True)
    if given.output:
        given.output.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

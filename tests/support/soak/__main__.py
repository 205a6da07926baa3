"""Soak the real server, and run the engine's state machines to a million steps; one JSON of both.

    python -m soak [--minutes 8] [--steps 1000000] [--seed N] [--output FILE]

Ends with status 1 if a page leaked, a request got stuck, memory grew, or an answer differed in a bit from
what the server says to the same request alone. The seeds are printed; a round is repeated with its own:
``--seed ROUND --minutes 0``, as far as the machine's timing lets it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from machine import commit, processor, report
from soak.machines import run_machines
from soak.run import soak
from state_machines import MACHINES


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="of traffic; two rounds at least")
    parser.add_argument("--steps", type=int, default=1_000_000, help="of the state machines; 0: none")
    parser.add_argument("--machine", choices=[*MACHINES], help="this one only, and no traffic")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": processor(), "commit": commit(), "seed": args.seed}
    print(f"seed {args.seed}", flush=True)
    if not args.machine:
        with TemporaryFile() as log:
            result["traffic"] = soak(
                seed=args.seed,
                minutes=args.minutes,
                requests=600,
                clients=28,
                catalogue=64,
                tokens=64,
                log=log,
            )
            if result["traffic"]["failures"]:
                log.seek(0)
                sys.stderr.buffer.write(log.read()[-20_000:])
    if args.steps:
        result["state_machines"] = run_machines(args.steps, args.seed, args.machine)
    report(result, args.output)
    failures = result.get("traffic", {}).get("failures", [])
    print(json.dumps({"failures": len(failures)}))
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())

"""Random files, kills and problems until the time is up: what `make test` tries with few examples, with many.

    python tools/soak.py --minutes 60 --seed 1

Each round takes the next seed: the property tests of the files that commands read (tests/test_properties.py) and of
the layers (tests/test_layer_properties.py) with a thousand examples each, commands killed at 20 random moments
(tests/end_to_end/test_killed.py), and the sweep of nonnegative deconvolution at the edge of float32
(benchmarks/numerics_sweep.py). A finding is printed with its seed and ends the run with status 1. With --out the rounds
are written as CSV and JSON.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROBLEMS = 2000
KILLS = 20


def commands(seed: int) -> dict[str, list[str]]:
    """What a round runs, by name."""
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    properties = [*pytest, "--hypothesis-profile", "soak", f"--hypothesis-seed={seed}"]
    return {
        "files": [*properties, "tests/test_properties.py"],
        "layers": [*properties, "tests/test_layer_properties.py"],
        "kills": [*pytest, "tests/end_to_end/test_killed.py", "--kills", str(KILLS), "--kills-seed", str(seed)],
        "numerics": ["benchmarks/numerics_sweep.py", "--problems", str(PROBLEMS), "--seed", str(seed)],
    }


def main() -> int:
    """Runs rounds; returns 1 at the first finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="path without ending")
    args = parser.parse_args()
    start, rows, seed = time.monotonic(), [], args.seed
    while not rows or time.monotonic() - start < 60 * args.minutes:
        for name, command in commands(seed).items():
            began = time.monotonic()
            done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=os.environ)
            minutes = (time.monotonic() - began) / 60
            print(
                f"seed {seed}, {name}: {'nothing found' if not done.returncode else 'FOUND'}, {minutes:.1f} min",
                flush=True,
            )
            if done.returncode:
                print(done.stdout[-20000:], done.stderr[-5000:], sep="\n")
                return 1
            rows.append({"seed": seed, "what": name, "minutes": round(minutes, 1), "findings": 0})
        seed += 1
    if args.out is not None:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        from recording import record  # pyright: ignore[reportMissingImports] of the benchmarks

        record(args.out, rows, minutes=round((time.monotonic() - start) / 60, 1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

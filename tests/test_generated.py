"""What is generated in this repository is what its generator writes now."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_everything_generated_is_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "generate.py", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (0, ""), f"run tools/generate.py: {done.stdout}{done.stderr}"

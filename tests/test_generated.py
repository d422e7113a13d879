"""What is generated in this repository is what its generator writes now, and no table of numbers is typed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))

# Rows with a decimal number that is no result, by document and first cell.
TYPED = {
    ("submission.md", "`grand-challenge` (default)"): "a version of CUDA",
    ("submission.md", "`brats`"): "a version of CUDA",
    ("speed.md", "Triton 3.3 or later; PyTorch's CUDA builds bring it along from 2.7 on"): "versions",
    (
        "speed.md",
        "CUDA (not ROCm), compute capability 8.0 or more: A100, A10, 30xx and later, not T4 or V100",
    ): "a version",
}


def typed_rows(text: str) -> list[list[str]]:
    """Rows of tables outside generated blocks that hold a decimal number, in cells.

    Addresses of links do not count, nor do numbers of sections.
    """
    text = re.sub(r"<!-- generated: .*?<!-- end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"\bsections? \d\.\d( and \d\.\d)?", "section", text)
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in re.sub(r"\]\([^)]*\)", "]", text).splitlines()
        if line.lstrip().startswith("|")
    ]
    return [row for row in rows if any(re.search(r"\d\.\d", cell) for cell in row)]


def test_everything_generated_is_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "generate.py", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (0, ""), f"run tools/generate.py: {done.stdout}{done.stderr}"


def test_a_typed_row_is_noticed():
    table = "| network | Dice |\n| --- | --- |\n| [ours](https://arxiv.org/abs/2504.00302) | {} |\n"
    assert typed_rows(table.format("0.91")) == [["[ours]", "0.91"]]
    assert typed_rows(table.format("better")) == []
    assert typed_rows(f"<!-- generated: python x.py -->\n\n{table.format('0.91')}\n<!-- end -->") == []


def test_no_table_of_numbers_is_typed():
    found = {(path.name, row[0]) for path in DOCUMENTS for row in typed_rows(path.read_text())}
    assert found == set(TYPED)


def test_benchmarks_readme_dates_its_commits():
    """What the results do not hold; as far as this clone's history goes back."""
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    commits = {
        commit
        for path in (ROOT / "benchmarks" / "results").glob("*.json")
        if (commit := json.loads(path.read_text()).get("commit"))
    }
    dates = dict(re.findall(r"\| (\w{7,}), (\d{4}-\d\d-\d\d) \|", readme))
    assert dates.keys() == commits
    command = ["git", "-C", ROOT, "show", "-s", "--format=%cs"]
    known = {}
    for commit in commits:
        done = subprocess.run([*command, commit], capture_output=True, text=True)
        if done.returncode == 0:
            known[commit] = done.stdout.strip()
    if not known:
        pytest.skip("no history")
    assert known.items() <= dates.items()

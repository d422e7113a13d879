"""What changed between two results of the same script.

    python benchmarks/compare_runs.py benchmarks/results/speed_cpu.csv new/speed_cpu.csv

Rows are matched by their words. Ratios that were measured side by side have quartiles: they changed if the quartiles
of both runs lie apart, and are not told apart otherwise. What is counted (parameters, FLOPs, bytes) changed if it is
another number. Seconds, rates per second, and ratios without quartiles beside others that have them are left out: of
two runs they say more of the machine than of the code.
Where the files have a JSON beside them, what the runs were measured on is compared, too.
"""

import argparse
import csv
import json
import re
import sys
from pathlib import Path

_QUARTILES = re.compile(r"(?P<low>[\d.]+) to (?P<high>[\d.]+)")
_OF_THE_MACHINE = re.compile(r"(^|_)(ms|s)$|_per_s$|minutes|seconds")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def read(path: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """The rows of a table by their words, each with its numbers.

    Args:
        path: of a CSV that a script here wrote.

    Raises:
        ValueError: if there is no such table, or two rows have the same words.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as a table ({error}); name a CSV of benchmarks/results") from error
    if not rows or any(None in row or None in row.values() for row in rows):
        raise ValueError(f"{path}: has no rows, or some of another length; name a CSV of benchmarks/results")
    # A column is words if any row has some there; where these do not name a row, the first numbers do too.
    words = [
        column
        for column in rows[0]
        if any(row[column] and _number(row[column]) is None and not _QUARTILES.fullmatch(row[column]) for row in rows)
    ]
    numbers = [column for column in rows[0] if column not in words]
    while len({tuple(row[column] for column in words) for row in rows}) < len(rows):
        if not numbers:
            raise ValueError(f"{path}: has the same row twice")
        words.append(numbers.pop(0))
    return {tuple(row[column] for column in words): {column: row[column] for column in numbers} for row in rows}


def spread(row: dict[str, str], column: str) -> tuple[float, float] | None:
    """Quartiles of a column; None where it has none.

    Args:
        row: of a table. Quartiles follow their ratio, as "1.02 to 1.08", or as quartile_low and quartile_high.
        column: one of its columns.
    """
    columns = list(row)
    after = columns[columns.index(column) + 1 :]
    if after and (found := _QUARTILES.fullmatch(row[after[0]])):
        return float(found["low"]), float(found["high"])
    if after[:2] == ["quartile_low", "quartile_high"]:
        return float(row[after[0]]), float(row[after[1]])
    return None


def changes(old: dict[str, str], new: dict[str, str]) -> tuple[list[str], int]:
    """What changed in a row, a sentence each, and how many ratios cannot be told apart.

    Args:
        old: row of the earlier run.
        new: the same of the later one.
    """
    found, same = [], 0
    for column in old:
        one, other = _number(old[column]), _number(new.get(column, ""))
        if column.startswith("quartile") or _OF_THE_MACHINE.search(column) or one is None or other is None:
            continue
        before, after = spread(old, column), spread(new, column)
        if before is None or after is None:
            # Beside ratios with quartiles, one without them was measured, and says too little.
            measured = " / " in column and any(name.startswith("quartile") for name in old)
            if one != other and not measured:
                found.append(f"{column}: {old[column]} -> {new[column]}")
        elif before[1] < after[0] or after[1] < before[0]:
            found.append(
                f"{column}: {one:g} ({before[0]:g} to {before[1]:g}) -> {other:g} ({after[0]:g} to {after[1]:g})"
            )
        else:
            same += 1
    return found, same


def report(old: Path, new: Path) -> list[str]:
    """What changed from one result to another, a line each.

    Args:
        old: CSV of the earlier run.
        new: of the later one.

    Raises:
        ValueError: if one of them is no such table.
    """
    before, after = read(old), read(new)
    lines = []
    provenance = [path.with_suffix(".json") for path in (old, new)]
    if all(path.is_file() for path in provenance):
        one, other = (json.loads(path.read_text()) for path in provenance)
        for key in ("commit", "device", "torch", "triton", "threads"):
            if one.get(key) != other.get(key):
                lines.append(f"{key}: {one.get(key)} -> {other.get(key)}")
    untold = 0
    for key in before:
        if key not in after:
            continue
        found, same = changes(before[key], after[key])
        untold += same
        lines += [f"{', '.join(filter(None, key))}: {change}" for change in found]
    for rows, others, what in ((before, after, "gone"), (after, before, "new")):
        lines += [f"{', '.join(filter(None, key))}: {what}" for key in rows if key not in others]
    if untold:
        lines.append(f"{untold} ratios are not told apart: their quartiles overlap")
    return lines or ["nothing changed"]


def main() -> int:
    """Prints what changed; returns 2 for files that are no results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    args = parser.parse_args()
    try:
        print("\n".join(report(args.old, args.new)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

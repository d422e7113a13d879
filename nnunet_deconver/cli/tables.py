"""Tables and lists of problems in a terminal."""

import sys
from collections.abc import Mapping
from pathlib import Path

PROBLEMS_SHOWN = 20


def table(rows: list[dict[str, str]], left: int = 1) -> str:
    """Lines of aligned columns, the first ones to the left, the others to the right.

    Args:
        rows: cells by column, the same columns in all of them; the keys become the header.
        left: number of columns whose cells stand to the left.
    """
    columns = list(rows[0])
    lines = [columns, *([row[column] for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]

    def aligned(line: list[str]) -> str:
        cells = [cell.ljust(width) for cell, width in zip(line[:left], widths[:left], strict=True)]
        cells += [cell.rjust(width) for cell, width in zip(line[left:], widths[left:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([aligned(lines[0]), "  ".join("-" * width for width in widths), *map(aligned, lines[1:])])


def report_problems(problems: Mapping[str, str], out: Path) -> int:
    """Names the cases that could not be measured on stderr; returns 1 if there are any, else 0."""
    if not problems:
        return 0
    print(f"\n{len(problems)} cases could not be measured:", file=sys.stderr)
    for name, problem in list(problems.items())[:PROBLEMS_SHOWN]:
        print(f"  {name}: {problem}", file=sys.stderr)
    if len(problems) > PROBLEMS_SHOWN:
        print(f"  and {len(problems) - PROBLEMS_SHOWN} more, all in {out / 'summary.json'}", file=sys.stderr)
    return 1


def report_not_drawn(problems: Mapping[str, str]) -> int:
    """Names what could not be drawn on stderr; returns 1 if there is something, else 0."""
    for name, problem in list(problems.items())[:PROBLEMS_SHOWN]:
        print(f"not drawn: {name}: {problem}", file=sys.stderr)
    if len(problems) > PROBLEMS_SHOWN:
        print(f"and {len(problems) - PROBLEMS_SHOWN} more", file=sys.stderr)
    return 1 if problems else 0

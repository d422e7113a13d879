"""Tables in a terminal."""


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

"""How every script here leaves its results: a table as CSV, and as JSON with what it was measured on."""

import csv
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import torch


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def ratio(times: Sequence[float], reference: Sequence[float]) -> tuple[float | str, str]:
    """The median of ratios of times that were measured in turn, and its quartiles.

    Where the quartiles lie further apart than the median from 1, there is no ratio to report: it is empty then.

    Args:
        times: one for each round.
        reference: likewise.
    """
    low, median, high = np.quantile(np.asarray(times) / np.asarray(reference), (0.25, 0.5, 0.75))
    return "" if high - low > abs(median - 1) else round(float(median), 3), f"{low:.2f} to {high:.2f}"


def provenance() -> dict:
    """Commit, device and versions of what is measured here and now."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    cpu = f"CPU, {os.cpu_count()} cores, {platform.machine()}"
    return {
        "commit": commit,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "torch": torch.__version__,
        "triton": _version("triton"),
    }


def record(out: Path, rows: list[dict], **further):
    """Writes `out`.csv and `out`.json, and prints the rows.

    Args:
        out: path without ending.
        rows: dicts with the same keys.
        further: goes into the JSON beside commit, device and versions.
    """
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    out.with_suffix(".json").write_text(json.dumps({**provenance(), **further, "rows": rows}, indent=1))
    for row in rows:
        print(row)

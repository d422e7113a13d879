"""Keeps what a study came to, as `nnunet-deconver study report` wrote it, beside this file's other results.

    python benchmarks/keep_study.py drive_study

Into results/drive_study go the study's report.html, its tables, its PNGs and study.json; into results/drive_study.json
what it was run on. Run it where the study was run, with the commit that ran it.
"""

import argparse
import json
import shutil
from pathlib import Path

from recording import provenance

from nnunet_deconver.studies.report import CASES, COMPARISONS, FIGURES, MODELS
from nnunet_deconver.studies.study import FILE, PAGE

RESULTS = Path(__file__).parent / "results"
KEPT = (FILE, PAGE, COMPARISONS, MODELS, CASES)


def keep(study: Path, results: Path) -> Path:
    """Copies a study's results into the folder of results, in the place of those of its name.

    Args:
        study: its folder.
        results: folder of results.

    Returns:
        The folder that has them now.

    Raises:
        SystemExit: if the study has no report, or is what was kept; nothing is changed then.
    """
    kept = results / study.name
    if kept.resolve() == study.resolve():
        raise SystemExit(f"{study}: is what was kept of a study; name the study's own folder")
    missing = [name for name in KEPT if not (study / name).is_file()]
    if missing:
        raise SystemExit(f"{study}: has no {', '.join(missing)}; run: nnunet-deconver study report {study}")
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(study / FIGURES, kept / FIGURES, ignore=shutil.ignore_patterns("*.svg"))
    for name in KEPT:
        shutil.copy(study / name, kept)
    kept.with_suffix(".json").write_text(json.dumps(provenance(), indent=1) + "\n")
    return kept


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of the study")
    print(keep(parser.parse_args().study.resolve(), RESULTS))


if __name__ == "__main__":
    main()

"""Prints what studies came to, in Markdown, from their files in benchmarks/results.

    python benchmarks/studies/tables.py answer drive_study hippocampus_study
    python benchmarks/studies/tables.py effect drive_study hippocampus_study --model "nnU-Net + DTC"
    python benchmarks/studies/tables.py differences drive_study
    python benchmarks/studies/tables.py costs drive_study

The files are the studies' own: comparison.csv, models.csv and study.json.
"""

import argparse
import csv
import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"
MEAN = "mean over classes"
DIGITS = {"dice": 4, "hd95": 2}


def rows(study: str, name: str) -> list[dict[str, str]]:
    """The rows of one of its tables."""
    with (RESULTS / study / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def headlines(studies: Sequence[str]) -> list[dict[str, str]]:
    """The comparisons of Dice, in the mean over classes where there are several."""
    found = {}
    for study in studies:
        for row in rows(study, "comparison"):
            if row["metric"] == "dice" and row["on"] == "cross-validation":
                found.setdefault((row["dataset"], row["equal"], row["model"]), row)
    return list(found.values())


def interval(row: dict[str, str], digits: int) -> str:
    """The difference with its interval."""
    difference, low, high = (f"{float(row[key]):+.{digits}f}" for key in ("difference", "low", "high"))
    return f"{difference} [{low}, {high}]"


def short(dataset: str) -> str:
    """A dataset's name without its number."""
    return dataset.partition("_")[2]


def settings(study: str) -> dict:
    """What the study was to do."""
    return json.loads((RESULTS / study / "study.json").read_text())


def answer(studies: Sequence[str]) -> str:
    """Is it better, by how much, at what cost: three lines."""
    compared = headlines(studies)
    verdicts = {verdict: [row for row in compared if row["verdict"] == verdict] for verdict in ("better", "worse")}
    reference = compared[0]["reference"]
    others = len(compared) - sum(map(len, verdicts.values()))
    models = {row["model"] for row in compared}
    datasets = list(dict.fromkeys(short(row["dataset"]) for row in compared))

    def listed(verdict: str) -> str:
        places: dict[str, list[str]] = {}
        for row in verdicts[verdict]:
            places.setdefault(f"{row['model']} on {short(row['dataset'])}", []).append(row["equal"])
        found = "; ".join(f"{place} (equal {' and '.join(equal)})" for place, equal in places.items())
        number = len(verdicts[verdict])
        return f"{number} {'is' if number == 1 else 'are'} {verdict}: {found}" if number else f"none is {verdict}"

    def said(row: dict[str, str]) -> str:
        return f"{row['model']} on {short(row['dataset'])} at equal {row['equal']}: {interval(row, 3)}"

    def limits(count: Callable[[dict], int]) -> str:
        return " / ".join(str(number) for number in dict.fromkeys(count(settings(study)) for study in studies))

    ordered = sorted(compared, key=lambda row: float(row["difference"]))
    slower = times_slower(studies, reference)
    ratios = [f"{model} {slower[model]}" for model in dict.fromkeys(row["model"] for row in compared)]
    lines = (
        f"- **Better?** Of {len(compared)} comparisons of Dice with {reference} ({len(models)} networks, "
        f"{' and '.join(datasets)}, equal iterations and equal time), {listed('better')}; "
        f"{listed('worse')}. In {others}, no difference could be shown (p < 0.05 after Holm).",
        f"- **By how much?** From {said(ordered[0])}, to {said(ordered[-1])} (95 % intervals over cases and "
        "trainings).",
        f"- **At what cost?** Time of an iteration on one CPU core, times that of {reference}, on "
        f"{' / '.join(datasets)}: {', '.join(ratios)}. Limits: "
        f"{limits(lambda each: each['epochs'] * each['iterations'])} iterations, "
        f"{limits(lambda each: len(each['folds']))} folds, {limits(lambda each: len(each['seeds']))} seeds, small "
        "patches. Long trainings were not measured.",
    )
    return "\n".join(map(filled, lines))


def effect(studies: Sequence[str], model: str | None) -> str:
    """Is one model better than the reference, by how much, at what cost: one line.

    Raises:
        SystemExit: if the studies do not compare the model.
    """
    compared = headlines(studies)
    here = [row for row in compared if row["model"] == model]
    if not here:
        known = ", ".join(dict.fromkeys(row["model"] for row in compared))
        raise SystemExit(f"--model {model}: is not compared in {', '.join(studies)}; name one of {known}")
    places: dict[str, list[str]] = {}
    for row in here:
        found = f"{interval(row, 3)} at equal {row['equal']}, {row['verdict']}"
        places.setdefault(short(row["dataset"]), []).append(found)
    differences = ". ".join(f"{place}: {'; '.join(each)}" for place, each in places.items())
    reference = here[0]["reference"]
    cost = f"An iteration takes {times_slower(studies, reference)[model]} times as long."
    return filled(f"- **{model}** beside {reference}. {differences}. {cost}")


def times_slower(studies: Sequence[str], reference: str) -> dict[str, str]:
    """How many times as long as the reference's an iteration of each model takes, on the studies' datasets in turn."""
    seconds: dict[str, dict[str, float]] = {}
    for study in studies:
        for row in rows(study, "models"):
            if row["equal"] == "iterations":
                seconds.setdefault(row["model"], {})[row["dataset"]] = float(row["fastest_epoch_s"])
    names = [name for study in studies for name in settings(study)["datasets"]]
    return {
        model: " / ".join(f"{each[name] / seconds[reference][name]:.2f}" for name in names)
        for model, each in seconds.items()
    }


def filled(line: str) -> str:
    """An entry of a list, in lines."""
    return textwrap.fill(line, 120, subsequent_indent="  ", break_on_hyphens=False)


def differences(study: str) -> str:
    """Differences to the reference at equal iterations and at equal time, in all metrics that were compared."""
    compared = [row for row in rows(study, "comparison") if row["on"] == "cross-validation"]
    classes = list(dict.fromkeys(row["class"] for row in compared))
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in compared:
        key = (row["model"], row["equal"], " / ".join(filter(None, (row["metric"], row["unit"]))))
        marked = {"better": "**", "worse": "_"}.get(row["verdict"], "")
        cell = f"{marked}{interval(row, DIGITS.get(row['metric'], 4))}{marked}"
        lines.setdefault(key, {})[row["class"]] = cell
    body = [[*key, *(cells[name] for name in classes)] for key, cells in lines.items()]
    return markdown([["model", "equal", "metric", *classes], *body])


def costs(study: str) -> str:
    """What was reached, and what a training took."""
    lines = [
        ["model", "equal", "Dice", "HD95", "parameters / M", "kFLOPs / voxel", "epochs", "minutes", "fastest epoch / s"]
    ]
    for row in rows(study, "models"):
        if row["on"] == "cross-validation":
            numbers = [
                f"{float(row['dice']):.3f}",
                f"{float(row['hd95']):.2f}",
                f"{float(row['parameters']) / 1e6:.2f}",
                f"{float(row['flops_per_voxel']) / 1e3:.0f}",
                f"{float(row['epochs']):.0f}",
                f"{60 * float(row['hours']):.1f}",
                f"{float(row['fastest_epoch_s']):.1f}",
            ]
            lines.append([row["model"], row["equal"], *numbers])
    return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
    """A table."""
    head, *body = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["answer", "effect", "differences", "costs"])
    parser.add_argument("studies", nargs="+", help="folders in benchmarks/results; one for differences and costs")
    parser.add_argument("--model", help="of effect")
    args = parser.parse_args()
    if args.what in ("answer", "effect"):
        print(answer(args.studies) if args.what == "answer" else effect(args.studies, args.model))
    else:
        print(*map({"differences": differences, "costs": costs}[args.what], args.studies), sep="\n\n")


if __name__ == "__main__":
    main()

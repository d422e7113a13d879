"""Measures folders of segmentations, or a model's cross-validation, and keeps what was measured.

Each case is written to `cases.jsonl` as soon as it is measured; whatever ends a run, the next one goes on from there.
The table and the summary are made from that file.
"""

import csv
import json
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

import nnunet_deconver
from nnunet_deconver.cores import usable_cores
from nnunet_deconver.errors import ArgumentError
from nnunet_deconver.files import written_whole
from nnunet_deconver.integration.plans import read_plans
from nnunet_deconver.metrics.cases import (
    CaseError,
    CaseFiles,
    DatasetLabels,
    EvaluationError,
    load_case,
    load_probabilities,
    pair_folders,
    pair_folds,
    read_dataset,
)
from nnunet_deconver.metrics.definitions import Settings, policies
from nnunet_deconver.metrics.measure import measure
from nnunet_deconver.metrics.measurements import BUILT_IN, metrics, wanted_measurements
from nnunet_deconver.metrics.statistics import summarize

CASES, TABLE, SUMMARY = "cases.jsonl", "metrics.csv", "summary.json"
DEFAULT_SETTINGS = Settings()
COLUMNS = ("case", "class", "metric", "value", "unit", "note")


def evaluate(
    references: Path,
    predictions: Path,
    out: Path,
    *,
    settings: Settings = DEFAULT_SETTINGS,
    dataset_json: Path | None = None,
    model: Path | None = None,
    chill: bool = False,
    processes: int | None = None,
) -> dict:
    """Measures the segmentations of a folder; the command `nnunet-deconver evaluate GT PRED`.

    Args:
        references: folder.
        predictions: folder.
        out: folder for metrics.csv, summary.json and cases.jsonl. What an interrupted run left there is gone on with.
        settings: what to measure; the unit is the dataset's.
        dataset_json: nnU-Net's file; None for that of `predictions`, of the folder above `references`, or of that.
        model: model folder that the predictions are from, to be noted.
        chill: cases without prediction are no problem.
        processes: that work at the same time; None for one per core.

    Returns:
        The summary, as in summary.json: statistics, definitions, and under "problems" the cases that could not be
        measured.

    Raises:
        EvaluationError: if the whole of it cannot be measured.
    """
    dataset_json = dataset_json or find_dataset_json(references, predictions)
    dataset = read_dataset(dataset_json, _plans(predictions), references)
    cases = pair_folders(references, predictions, dataset.file_ending)
    return _evaluate(*cases, dataset, settings, out, chill, processes, references, predictions, model, dataset_json)


def evaluate_model(
    model: Path,
    out: Path,
    *,
    references: Path | None = None,
    folds: Sequence[int] | None = None,
    settings: Settings = DEFAULT_SETTINGS,
    dataset_json: Path | None = None,
    chill: bool = False,
    processes: int | None = None,
) -> dict:
    """Measures a model's cross-validation, its fold_*/validation; the command `nnunet-deconver evaluate --model`.

    Args:
        model: model folder of nnU-Net.
        out: see `evaluate`, as for the others.
        references: folder; None for gt_segmentations of the dataset in nnUNet_preprocessed.
        folds: numbers; None for all that are there.
        settings: see there.
        dataset_json: nnU-Net's file; None for that of the model.
        chill: see there.
        processes: see there.

    Returns:
        The summary.

    Raises:
        EvaluationError: if the whole of it cannot be measured.
    """
    name = read_plans(check_model(model) / "plans.json").get("dataset_name")
    preprocessed = os.environ.get("nnUNet_preprocessed")
    folder = Path(preprocessed) / str(name) if preprocessed else None
    splits = folder / "splits_final.json" if folder and (folder / "splits_final.json").is_file() else None
    if references is None:
        if folder is None:
            raise EvaluationError(
                f"the references of --model {model} are in nnUNet_preprocessed/{name}/gt_segmentations, and "
                "nnUNet_preprocessed is not set; set it, or name the folder of references: evaluate GT --model ..."
            )
        references = folder / "gt_segmentations"
        if not references.is_dir():
            raise EvaluationError(
                f"{references}: no such folder; run nnUNetv2_plan_and_preprocess, or name the folder of references: "
                "evaluate GT --model ..."
            )
    dataset_json = dataset_json or find_dataset_json(references, model, model)
    dataset = read_dataset(dataset_json, _plans(model), references)
    cases = pair_folds(model, references, dataset.file_ending, splits, folds)
    return _evaluate(*cases, dataset, settings, out, chill, processes, references, model, model, dataset_json)


def check_model(model: Path) -> Path:
    """The model folder, if it is one.

    Raises:
        ArgumentError: if it has no plans.json.
    """
    if not (model / "plans.json").is_file():
        raise ArgumentError(
            "model",
            model,
            "has no plans.json; it must be a folder such as nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION",
        )
    return model


def find_dataset_json(references: Path, predictions: Path, model: Path | None = None) -> Path:
    """The dataset.json to go by: beside predictions or references, of a cross-validation that of the model.

    Raises:
        EvaluationError: if there is none, naming the places.
    """
    folders = [predictions] if predictions == model else [predictions, references.resolve().parent, references]
    places = [folder / "dataset.json" for folder in folders]
    for place in places:
        if place.is_file():
            return place
    raise EvaluationError(
        f"no dataset.json, which says what the labels are: looked for {', '.join(map(str, places))}; "
        "name it: --dataset-json FILE"
    )


def _plans(predictions: Path) -> Path | None:
    """The plans that nnU-Net left beside predictions or model; they name the label manager."""
    path = predictions / "plans.json"
    return path if path.is_file() else None


def _evaluate(
    cases: Sequence[CaseFiles],
    missing: Mapping[str, str],
    extra: Mapping[str, str],
    dataset: DatasetLabels,
    settings: Settings,
    out: Path,
    chill: bool,
    processes: int | None,
    references: Path,
    predictions: Path,
    model: Path | None,
    dataset_json: Path,
) -> dict:
    processes = len(usable_cores()) if processes is None else processes
    if processes < 1:
        raise ArgumentError("processes", processes, "must be at least 1")
    source = {
        "references": str(references.resolve()),
        "predictions": str(predictions.resolve()),
        "model": str(model.resolve()) if model else None,
        "dataset_json": str(dataset_json.resolve()),
    }
    problems = extra if chill else {**missing, **extra}
    return measure_cases(cases, problems, dataset, replace(settings, unit=dataset.unit), out, processes, source)


def measure_cases(
    cases: Sequence[CaseFiles],
    problems: Mapping[str, str],
    dataset: DatasetLabels,
    settings: Settings,
    out: Path,
    processes: int,
    source: Mapping[str, str | None],
) -> dict:
    """Measures cases and writes the table and the summary.

    Args:
        cases: to measure; those that `out` has already, measured in the same way on the same files, are not repeated.
        problems: what is wrong with cases that cannot be measured, to be reported with the rest.
        dataset: what is in the files.
        settings: what to measure.
        out: folder, made if there is none.
        processes: that work at the same time; 1 for none but this one.
        source: where the files are from, noted in the summary.

    Returns:
        The summary: settings, definitions, problems and statistics.

    Raises:
        EvaluationError: if `out` cannot be written, or holds an evaluation with other settings.
    """
    from tqdm import tqdm

    header = {"settings": asdict(settings), "classes": dataset.classes, "ignore": dataset.ignore}
    added = [name for name in wanted_measurements(settings) if name not in BUILT_IN]
    if added:  # cases measured without another package's metrics are not gone on with
        header["measurements"] = added
    header = json.loads(json.dumps(header))  # as it will be read again
    problems = dict(problems)
    stamps = {case.name: _stamp(case, settings) for case in cases}
    earlier = _read_kept(out, header)
    kept = {name: earlier[name] for name, stamp in stamps.items() if earlier.get(name, {}).get("files") == stamp}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with written_whole(out / CASES) as file:
            file.writelines(json.dumps(line) + "\n" for line in (header, *kept.values()))
    except OSError as error:
        raise EvaluationError(f"{out}: cannot be written ({error.strerror}); choose another folder") from error
    remaining = [case for case in cases if case.name not in kept]
    with (
        (out / CASES).open("a") as file,
        tqdm(total=len(cases), initial=len(kept), unit="case", desc="evaluate") as bar,
    ):
        for case, result in _measure_all(remaining, dataset, settings, processes):
            bar.update()
            if isinstance(result, str):
                problems[case.name] = result
                continue
            kept[case.name] = {"case": case.name, "files": stamps[case.name], **result}
            file.write(json.dumps(kept[case.name]) + "\n")
            file.flush()
    return _write_results([kept[name] for name in sorted(kept)], problems, dataset, settings, out, source)


_RECORD = Draft202012Validator(
    {
        "type": "object",
        "required": ["case", "files", "rank", "values"],
        "properties": {
            "case": {"type": "string"},
            "files": {"type": "array"},
            "rank": {"enum": [1, 2, 3]},
            "values": {
                "type": "array",
                "items": {
                    "type": "array",
                    "minItems": 4,
                    "maxItems": 4,
                    "prefixItems": [
                        {"type": "string"},
                        {"type": "string"},
                        {"type": ["number", "null"]},
                        {"type": "string"},
                    ],
                },
            },
        },
    }
)


def _read_kept(out: Path, header: dict) -> dict[str, dict]:
    """What an earlier run into the folder has measured, by case."""
    path = out / CASES
    if not path.is_file():
        return {}
    problem = f"{path}: is not what evaluate writes; delete it, or choose another folder"
    lines = []
    try:
        for line in path.read_text().splitlines():
            lines.append(json.loads(line))
    except UnicodeDecodeError as error:
        raise EvaluationError(problem) from error
    except (ValueError, RecursionError):
        pass  # the line at which a run was killed, or the disk was full
    if not all(isinstance(line, dict) for line in lines):
        raise EvaluationError(problem)
    if lines and lines[0] != header:
        earlier = lines[0] if isinstance(lines[0].get("settings"), dict) else {}
        changed = [key for key in ("classes", "ignore") if earlier.get(key) != header[key]]
        changed += [
            f"{key} {earlier.get('settings', {}).get(key)} (now {value})"
            for key, value in header["settings"].items()
            if earlier.get("settings", {}).get(key) != value
        ]
        raise EvaluationError(
            f"{out}: holds an evaluation with other settings: {', '.join(changed)}; choose another folder, or "
            f"delete {path}"
        )
    if not all(_RECORD.is_valid(record) for record in lines[1:]):
        raise EvaluationError(problem)
    return {record["case"]: record for record in lines[1:]}


def _stamp(case: CaseFiles, settings: Settings) -> list[list]:
    """Which files are measured: a prediction that was made anew must be measured anew."""
    stamps = []
    for path in (case.reference, case.prediction, *([case.probabilities] if settings.probabilities else [])):
        stamp = [str(path.resolve())]
        with suppress(OSError):  # reading it will say what is wrong
            stamp += [path.stat().st_size, path.stat().st_mtime_ns]
        stamps.append(stamp)
    return stamps


def _measure_all(
    cases: Sequence[CaseFiles], dataset: DatasetLabels, settings: Settings, processes: int
) -> Iterator[tuple[CaseFiles, dict | str]]:
    """Yields each case when it is measured, with what `measure_case` returned."""
    if processes == 1 or len(cases) < 2:
        for case in cases:
            yield case, measure_case(case, dataset, settings)
        return
    # Not by forking: the parent may run threads of torch, whose locks a fork would take along.
    context = multiprocessing.get_context("spawn")
    # Ctrl-C reaches every process of the terminal; the parent decides what ends, without their tracebacks.
    quiet = (signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(min(processes, len(cases)), context, initializer=signal.signal, initargs=quiet)
    try:
        futures = {pool.submit(measure_case, case, dataset, settings): case for case in cases}
        for future in as_completed(futures):
            case = futures[future]
            try:
                result = future.result()
            except BrokenProcessPool:
                result = "a process died, probably of too little memory; run again with fewer processes to go on"
            yield case, result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def measure_case(case: CaseFiles, dataset: DatasetLabels, settings: Settings) -> dict | str:
    """Measures a case.

    Returns:
        `rank`, the number of axes, and `values`, as JSON takes them: lists of class, metric, value (None for NaN) and
        note. Or, as a string, why there are none.
    """
    try:
        reference, prediction, spacing = load_case(case, dataset, settings.same_grid)
        probabilities = load_probabilities(case, dataset, reference.shape) if settings.probabilities else None
        values = measure(reference, prediction, spacing, dataset.classes, dataset.ignore, settings, probabilities)
    except CaseError as error:
        return str(error)
    except Exception as error:  # one case must not end the others'
        return f"{type(error).__name__}: {error}"
    return {"rank": reference.ndim, "values": [[*value[:2], _without_nan(value.value), value.note] for value in values]}


def _write_results(
    records: Sequence[dict],
    problems: Mapping[str, str],
    dataset: DatasetLabels,
    settings: Settings,
    out: Path,
    source: Mapping[str, str | None],
) -> dict:
    with written_whole(out / TABLE, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for record in records:
            units = {name: metric.unit for name, metric in metrics(settings, record["rank"]).items()}
            for name, metric, value, note in record["values"]:
                number = "" if value is None else repr(value)
                writer.writerow((record["case"], name, metric, number, units[metric], note))
    table = metrics(settings, max((record["rank"] for record in records), default=3))
    cases, empty = [], {}
    for record in records:
        cases.append({name: {} for name in dataset.classes})
        for name, metric, value, _ in record["values"]:
            cases[-1][name][metric] = math.nan if value is None else value
        for name, note in sorted({(name, note) for name, _, _, note in record["values"] if note}):
            of_class = empty.setdefault(name, {})
            of_class[note] = of_class.get(note, 0) + 1
    by_class, foreground = summarize(cases, list(dataset.classes), list(table)) if cases else ({}, {})
    summary = {
        "nnunet_deconver": nnunet_deconver.__version__,
        "source": source,
        "settings": asdict(settings),
        "policies": policies(settings),
        "definitions": {name: {"unit": metric.unit, "definition": metric.definition} for name, metric in table.items()},
        "classes": dataset.classes,
        "ignore_label": dataset.ignore,
        "cases": len(cases),
        "empty": empty,
        "problems": dict(sorted(problems.items())),
        "metrics": by_class,
        "foreground_mean": foreground,
    }
    with written_whole(out / SUMMARY) as file:
        file.write(json.dumps(_without_nan(summary), indent=1) + "\n")
    return summary


def _without_nan(content: Any) -> Any:
    """NaN is not JSON: null instead."""
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content

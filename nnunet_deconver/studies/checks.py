"""What must be there before anything is trained."""

import json
from collections.abc import Iterable
from pathlib import Path

from nnunet_deconver.errors import InputError
from nnunet_deconver.files import read_json, written_whole
from nnunet_deconver.integration.plans import read_dataset_json, read_plans
from nnunet_deconver.metrics.cases import list_cases
from nnunet_deconver.metrics.measurements import metrics
from nnunet_deconver.models.planned import plan_of
from nnunet_deconver.models.trainer import find_trainer
from nnunet_deconver.studies.study import ITERATIONS, Model
from nnunet_deconver.studies.tasks import TRAIN, Task, Workspace


def check_study(workspace: Workspace) -> None:
    """Looks for everything a study takes, and makes the folds that nnU-Net would make with its first training.

    Raises:
        InputError: for what is missing or does not fit, with all problems, each on a line.
    """
    problems = []

    def note(check: object, *arguments: object) -> None:
        try:
            check(*arguments)  # pyright: ignore[reportCallIssue]
        except InputError as error:
            problems.append(str(error))

    study = workspace.study
    for model in study.models:
        note(_check_trainer, workspace, model)
    note(_check_metrics, workspace)
    for dataset in study.datasets:
        for model in study.models:
            note(_check_plans, workspace, dataset, model)
        note(_check_test, workspace, dataset)
    if not problems:
        for dataset in study.datasets:
            note(_check_folds, workspace, dataset)
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        listed = "\n  ".join(dict.fromkeys(problems[:10]))
        raise InputError(f"the study cannot be run:\n  {listed}{more}" if len(problems) > 1 else problems[0])


def _check_trainer(workspace: Workspace, model: Model) -> None:
    find_trainer(model.trainer)
    find_trainer(workspace.trainer(Task(TRAIN, "", model.name, ITERATIONS, workspace.study.runs[0])))


def _check_metrics(workspace: Workspace) -> None:
    known = metrics(workspace.study.settings)
    unknown = [name for name in workspace.study.metrics or () if name not in known]
    if unknown:
        raise InputError(f"metrics: must be among {', '.join(known)}, got {', '.join(unknown)}")


def _check_plans(workspace: Workspace, dataset: str, model: Model) -> None:
    folder = workspace.preprocessed / dataset
    number = int(dataset[7:10])
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; run: nnUNetv2_plan_and_preprocess -d {number}")
    path = folder / f"{model.plans}.json"
    content = read_plans(path)
    configuration = workspace.configuration(dataset, model)
    # Training imports what they name anyway; here, nothing is built.
    _, manager = plan_of(content, configuration, str(path), trust=True)
    if manager.previous_stage_name is not None:
        raise InputError(
            f"{path}: {configuration} is the second stage of a cascade, which a study does not train; take "
            f"{manager.previous_stage_name} or 3d_fullres"
        )
    data = folder / manager.data_identifier
    if not any(data.glob("*.pkl")):
        raise InputError(
            f"{data}: has no preprocessed cases; run: nnUNetv2_preprocess -d {number} -plans_name {model.plans} "
            f"-c {configuration}"
        )
    _check_trained_plans(workspace, dataset, model, content)


def _check_trained_plans(workspace: Workspace, dataset: str, model: Model, content: dict) -> None:
    """Models that are there already must be of these plans: they would be taken for done."""
    study, configuration = workspace.study, workspace.configuration(dataset, model)
    for seed in study.runs:
        folder = workspace.model_folder(Task(TRAIN, dataset, model.name, ITERATIONS, seed))
        if (folder / "plans.json").is_file() and any(folder.glob("fold_*")):
            trained = read_plans(folder / "plans.json")
            if trained["configurations"].get(configuration) != content["configurations"][configuration]:
                raise InputError(
                    f"{folder}: was trained with other plans than {model.plans} are now, and would be taken for done; "
                    "move it away, or give the new plans another name (nnUNetv2_plan_experiment "
                    "-overwrite_plans_name)"
                )


def _check_test(workspace: Workspace, dataset: str) -> None:
    raw = workspace.raw / dataset
    if not workspace.has_test(dataset):
        return
    from nnunetv2.utilities.utils import get_identifiers_from_splitted_dataset_folder

    ending = read_dataset_json(raw / "dataset.json")["file_ending"]
    images = get_identifiers_from_splitted_dataset_folder(str(raw / "imagesTs"), ending)
    _need(images, list_cases(raw / "labelsTs", ending), f"{raw / 'labelsTs'}: has no truth of the test images")


def _check_folds(workspace: Workspace, dataset: str) -> None:
    folder = workspace.preprocessed / dataset
    plans = read_plans(folder / f"{workspace.study.models[0].plans}.json")
    configuration = workspace.configuration(dataset, workspace.study.models[0])
    _, manager = plan_of(plans, configuration, str(folder), trust=True)
    cases = sorted(path.stem for path in (folder / manager.data_identifier).glob("*.pkl"))
    splits = _splits(folder, cases)
    missing = [fold for fold in workspace.study.folds if fold >= len(splits)]
    if missing:
        raise InputError(
            f"folds: {', '.join(map(str, missing))} not there: {folder / 'splits_final.json'} has "
            f"{len(splits)}, 0 to {len(splits) - 1}; nnU-Net would train others on random cases"
        )
    chosen = [splits[fold] for fold in workspace.study.folds]
    validated = [case for split in chosen for case in split["val"]]
    twice = sorted({case for case in validated if validated.count(case) > 1})
    if twice:
        raise InputError(
            f"{folder / 'splits_final.json'}: the folds of the study share cases for validation ({_some(twice)}), and "
            "a cross-validation has each once; choose folds that share none"
        )
    for split in chosen:
        seen = sorted(set(split["val"]) & set(split["train"]))
        if seen:
            raise InputError(f"{folder / 'splits_final.json'}: a fold validates cases it trains on ({_some(seen)})")
        _need([*split["train"], *split["val"]], cases, f"{folder / manager.data_identifier}: has no preprocessed")
    ending = read_dataset_json(folder / "dataset.json")["file_ending"]
    truths = list_cases(folder / "gt_segmentations", ending) if (folder / "gt_segmentations").is_dir() else {}
    _need(validated, truths, f"{folder / 'gt_segmentations'}: has no truth of")


def _splits(folder: Path, cases: list[str]) -> list[dict[str, list[str]]]:
    path = folder / "splits_final.json"
    if not path.is_file():
        from nnunetv2.utilities.crossval_split import generate_crossval_split

        # As nnU-Net's first training does: several of them, begun at the same time, would all write it.
        splits = generate_crossval_split(cases, seed=12345, n_splits=5)
        with written_whole(path) as file:
            json.dump([{key: [str(case) for case in split[key]] for key in split} for split in splits], file, indent=4)
    splits = read_json(path, "it must be nnU-Net's list of folds", list)
    for split in splits:
        if not isinstance(split, dict) or not all(isinstance(split.get(key), list) for key in ("train", "val")):
            raise InputError(f"{path}: must be a list of folds, each with the lists train and val")
    return splits


def _need(wanted: Iterable[str], there: Iterable[str], problem: str) -> None:
    there = set(there)
    missing = sorted({case for case in wanted if case not in there})
    if missing:
        raise InputError(f"{problem}: {_some(missing)}")


def _some(cases: list[str]) -> str:
    return ", ".join(cases[:5]) + (f" and {len(cases) - 5} more" if len(cases) > 5 else "")

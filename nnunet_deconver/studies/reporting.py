"""The report of a study: its evaluated tasks, what its networks cost, and what is not done."""

import math
from pathlib import Path

from nnunet_deconver.errors import InputError
from nnunet_deconver.files import read_json
from nnunet_deconver.models.training_log import noted_number
from nnunet_deconver.studies.report import write_report
from nnunet_deconver.studies.resources import network_cost
from nnunet_deconver.studies.results import ModelCost, Result
from nnunet_deconver.studies.status import DONE, FAILED, study_status
from nnunet_deconver.studies.study import CROSS_VALIDATION, ITERATIONS, TEST
from nnunet_deconver.studies.tasks import EVALUATE, EVALUATE_TEST, REPORT, TRAIN, Task, Workspace


def report_study(workspace: Workspace) -> list[Path]:
    """Compares what is done, see `write_report`.

    Returns:
        The files written, the page first.

    Raises:
        InputError: if nothing is evaluated yet, or it cannot be compared.
    """
    study = workspace.study
    statuses = [status for status in study_status(workspace) if status.task.kind != REPORT]
    evaluated = [
        status.task for status in statuses if status.task.kind in (EVALUATE, EVALUATE_TEST) and status.state == DONE
    ]
    if not evaluated:
        raise InputError(
            f"{workspace.out}: nothing is evaluated yet; run: nnunet-deconver study {workspace.out}, and see where it "
            "stands with: nnunet-deconver study status"
        )
    missing = [f"{each.task.name}: {each.state}" for each in statuses if each.state == FAILED]
    left = sum(each.state != DONE for each in statuses)
    if left:
        missing.insert(0, f"{left} of {len(statuses)} tasks are not done.")
    costs = {}
    for dataset, model in dict.fromkeys((task.dataset, task.model) for task in evaluated):
        try:
            costs[dataset, model] = _cost(workspace, dataset, model)
        except InputError as error:  # a network that can be trained, but not counted
            missing.append(f"The cost of {model} on {dataset} is not known: {error}")
    report = write_report(
        [_result(workspace, task) for task in evaluated],
        costs,
        workspace.out,
        reference=study.reference,
        metrics=study.metrics,
        title=f"Study {workspace.out.name}",
        missing=missing,
    )
    return list(report.files)


def _result(workspace: Workspace, task: Task) -> Result:
    folder = workspace.model_folder(task)
    folds = {fold: folder / f"fold_{fold}" for fold in workspace.study.folds}
    held_out = {}
    if task.kind == EVALUATE:
        splits = read_json(workspace.preprocessed / task.dataset / "splits_final.json", expected=list)
        held_out = {case: fold for fold in folds for case in splits[fold]["val"]}
    on = CROSS_VALIDATION if task.kind == EVALUATE else TEST
    return Result(task.dataset, task.model, task.equal, task.seed, on, workspace.evaluation(task), folds, held_out)


def _cost(workspace: Workspace, dataset: str, model: str) -> ModelCost:
    cost = network_cost(workspace, dataset, model)
    study = workspace.study
    iterations = study.iterations
    if iterations is None:
        # As nnU-Net noted it; of a trainer's own.
        task = Task(TRAIN, dataset, model, ITERATIONS, study.runs[0], study.folds[0])
        iterations = noted_number(workspace.fold_folder(task), "num_iterations_per_epoch") or 250
    return ModelCost(cost.parameters, cost.flops / math.prod(cost.patch_size), cost.memory.peak, iterations)

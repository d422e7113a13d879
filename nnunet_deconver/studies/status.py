"""Where a study stands, as the disk says."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_deconver.errors import InputError
from nnunet_deconver.models.training_log import noted_number, read_curves
from nnunet_deconver.studies.claims import is_valid, read_claim
from nnunet_deconver.studies.running import FAILURE
from nnunet_deconver.studies.tasks import TRAIN, Task, Workspace

DONE, RUNNING, FAILED, INTERRUPTED, READY, WAITING, BLOCKED = (
    "done",
    "running",
    "failed",
    "interrupted",
    "ready",
    "waiting",
    "blocked",
)


@dataclass(frozen=True)
class TaskStatus:
    """Where a task stands.

    Attributes:
        task: it is of.
        state: done, running, failed, interrupted (goes on when the study does), ready, waiting (for other tasks),
            blocked (one of them failed).
        epoch: of a training, how many are done; None if it has not begun.
        epochs: how many it has; None if that is not known yet.
        seconds_left: None if that is not known.
        host: it runs on.
    """

    task: Task
    state: str
    epoch: int | None = None
    epochs: int | None = None
    seconds_left: float | None = None
    host: str | None = None


def study_status(workspace: Workspace) -> list[TaskStatus]:
    """Where each task stands, in the order of the study."""
    states: dict[str, str] = {}
    found = []
    for task in workspace.tasks.values():
        status = _task_status(workspace, task, states)
        states[task.name] = status.state
        found.append(status)
    return found


def _task_status(workspace: Workspace, task: Task, states: dict[str, str]) -> TaskStatus:
    if workspace.is_done(task):
        return TaskStatus(task, DONE)
    progress = _progress(workspace, task) if task.kind == TRAIN else {}
    path = workspace.claim(task)
    claim = read_claim(path)
    if claim is not None and is_valid(path, claim):
        return TaskStatus(task, RUNNING, **progress, host=claim.get("host"))
    if (workspace.folder(task) / FAILURE).is_file():
        return TaskStatus(task, FAILED, **progress)
    required = [states[each.name] for each in workspace.requires(task)]
    if any(state in (FAILED, BLOCKED) for state in required):
        return TaskStatus(task, BLOCKED)
    if any(state != DONE for state in required):
        return TaskStatus(task, WAITING)
    return TaskStatus(task, INTERRUPTED if workspace.started(task) else READY, **progress)


def _progress(workspace: Workspace, task: Task) -> dict:
    try:
        folder = workspace.fold_folder(task)
    except InputError:  # at equal time, of a training whose length is not known yet
        return {}
    epochs = noted_number(folder, "num_epochs")
    if epochs is None:
        return {}
    curves = read_curves(folder)
    if curves is None:
        return {"epoch": 0, "epochs": epochs}
    done = len(curves.train_loss)
    each = float(np.nanmedian(curves.seconds)) if not np.isnan(curves.seconds).all() else None
    return {"epoch": done, "epochs": epochs, "seconds_left": None if each is None else (epochs - done) * each}


def status_rows(statuses: Sequence[TaskStatus]) -> list[dict[str, str]]:
    """The rows of a table: task, state, epoch, time left, host."""
    rows = []
    for status in statuses:
        epoch = "" if status.epoch is None else f"{status.epoch}/{'?' if status.epochs is None else status.epochs}"
        left = "" if status.seconds_left is None else duration(status.seconds_left)
        rows.append(
            {
                "task": status.task.name,
                "state": status.state,
                "epoch": epoch,
                "time left": left if status.state in (RUNNING, INTERRUPTED) else "",
                "host": status.host or "",
            }
        )
    return rows


def duration(seconds: float) -> str:
    """A duration, to read."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"

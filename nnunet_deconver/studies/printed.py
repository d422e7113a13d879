"""Writes the commands of a study down, for a scheduler that this package does not know."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_deconver.files import written_whole
from nnunet_deconver.studies.study import ITERATIONS, TIME
from nnunet_deconver.studies.tasks import EVALUATE, EVALUATE_TEST, PREDICT, REPORT, TRAIN, VALIDATE, Task, Workspace

# What each file has; those of one can run at the same time, once those of the files before are done.
STAGES = (
    ("1_train", (TRAIN,), ITERATIONS),
    ("2_train_equal_time", (TRAIN,), TIME),
    ("3_predict", (PREDICT,), None),
    ("4_evaluate", (EVALUATE, EVALUATE_TEST), None),
    ("5_report", (REPORT,), None),
)


def write_commands(workspace: Workspace) -> list[Path]:
    """Writes a file of commands for each stage, a line for what is one job; empty stages have no file.

    Each command does its task, goes on with it, or does nothing if it is done: it can be repeated.

    Args:
        workspace: of the study.

    Returns:
        The files, in the order in which they are to run.
    """
    folder = workspace.out / "commands"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for stage, kinds, equal in STAGES:
        tasks = [
            task
            for task in workspace.tasks.values()
            if task.kind in kinds and (equal is None or task.equal == equal) and not _all_done(workspace, task)
        ]
        path = folder / f"{stage}.txt"
        path.unlink(missing_ok=True)
        if tasks:
            with written_whole(path) as file:
                file.writelines(f"{command_line(workspace, _together(task))}\n" for task in tasks)
            written.append(path)
    return written


def _together(task: Task) -> list[Task]:
    return [task, replace(task, kind=VALIDATE)] if task.kind == TRAIN else [task]


def _all_done(workspace: Workspace, task: Task) -> bool:
    return all(map(workspace.is_done, _together(task)))


def command_line(workspace: Workspace, tasks: Sequence[Task]) -> str:
    """The command that does tasks of a study, one after the other."""
    return shlex.join(["nnunet-deconver", "study", str(workspace.out), "--task", *(task.name for task in tasks)])

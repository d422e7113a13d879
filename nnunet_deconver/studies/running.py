"""Runs a task: claims it, starts its command, keeps the log, and says how it ended."""

import json
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from nnunet_deconver.errors import InputError
from nnunet_deconver.files import read_json, remove_unfinished, written_whole
from nnunet_deconver.integration.commands import end_group, find_program
from nnunet_deconver.integration.trainers import VARIABLE, external_folders, shim_folder
from nnunet_deconver.studies.claims import HEARTBEAT, Claim
from nnunet_deconver.studies.tasks import Task, Workspace, shown

FAILURE, LOG = "failed.json", "log.txt"
LOG_LINES = 15  # of a failed task that are shown


class TaskFailed(InputError):
    """A command failed; the message has the end of its log."""


class Stopped(Exception):
    """The study was asked to stop, and the task with it."""


def task_environment(study_device: str) -> dict[str, str]:
    """The variables of a task's command: nnU-Net finds our trainers without being registered."""
    folders = dict.fromkeys(str(folder.resolve()) for folder in (shim_folder(), *external_folders()))
    environment = {**os.environ, VARIABLE: os.pathsep.join(folders), "PYTHONUNBUFFERED": "1"}
    if study_device == "cpu":
        environment.setdefault("nnUNet_compile", "f")  # which nnU-Net does not do there
        # Threads that spin while they wait take the cores of what runs beside them.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return environment


def core_variables(cores: int) -> dict[str, str]:
    """Variables by which a command takes so many cores; those that are set already stay."""
    names = ("OMP_NUM_THREADS", "nnUNet_n_proc_DA", "nnUNet_def_n_proc")
    return {name: str(cores) for name in names if name not in os.environ}


def run_task(
    workspace: Workspace,
    task: Task,
    extra: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Does a task, or what is left of it; nothing, if it is done.

    While another process works on it, waits for that.

    Args:
        workspace: of the study.
        task: one of its tasks.
        extra: variables for its command.
        stop: ends the command when it is set.

    Raises:
        TaskFailed: if its command failed, or did not do it.
        InputError: if what it needs is not done.
        Stopped: if it was asked to stop.
    """
    stop = stop or threading.Event()
    claim = Claim(workspace.claim(task))
    while not workspace.is_done(task):
        if claim.take():
            try:
                # Another may have done it between the two lines above.
                if not workspace.is_done(task):
                    _run(workspace, task, claim, extra or {}, stop)
            finally:
                claim.release()
            return
        if stop.wait(1):
            raise Stopped


def _run(workspace: Workspace, task: Task, claim: Claim, extra: Mapping[str, str], stop: threading.Event) -> None:
    folder = workspace.folder(task)
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    (folder / FAILURE).unlink(missing_ok=True)
    missing = [each.name for each in workspace.requires(task) if not workspace.is_done(each)]
    if missing:
        raise InputError(f"{task.name} needs what is not done: {', '.join(missing[:3])}{' ...' if missing[3:] else ''}")
    workspace.prepare(task)
    command = workspace.command(task)
    log = folder / LOG
    with log.open("a", encoding="utf-8") as sink:
        sink.write(f"\n$ {shown(command)}\n# on {claim.content['host']}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        sink.flush()
        process = subprocess.Popen(
            [find_program(command[0]), *command[1:]],
            env={**task_environment(workspace.study.device), **extra},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the study; it ends the whole group.
            start_new_session=True,
        )
    try:
        claim.add_process(process.pid)
        touched = time.monotonic()
        while process.poll() is None:
            if stop.wait(0.2):
                raise Stopped
            if time.monotonic() - touched > HEARTBEAT:
                touched = time.monotonic()
                if not claim.touch():
                    raise InputError(f"{task.name}: another machine took it over, as this one had not answered")
    finally:
        end_group(process)
    if process.returncode == 0:
        workspace.finish(task)
        if workspace.is_done(task):
            return
    _note_failure(folder, process.returncode, command, claim)
    raise TaskFailed(describe_failure(workspace, task))


def _note_failure(folder: Path, code: int, command: list[str], claim: Claim) -> None:
    content = {"exit_code": code, "command": shown(command), "host": claim.content["host"], "at": time.time()}
    with written_whole(folder / FAILURE) as file:
        json.dump(content, file, indent=1)


def describe_failure(workspace: Workspace, task: Task) -> str | None:
    """How a task failed when it was last tried, with the end of its log; None if it did not."""
    folder = workspace.folder(task)
    if not (folder / FAILURE).is_file():
        return None
    failure = read_json(folder / FAILURE)
    code = failure.get("exit_code")
    ended = f"failed with exit code {code}"
    if code == 0:
        ended = "ended, but what it makes is not there"
    elif isinstance(code, int) and code < 0:
        ended = f"was ended by signal {-code}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    lines = deque(maxlen=LOG_LINES)
    with suppress(OSError), (folder / LOG).open(encoding="utf-8", errors="replace") as file:
        lines.extend(line.rstrip() for line in file if line.strip())
    shown_lines = "\n  ".join(lines)
    return f"{task.name} {ended} on {failure.get('host')}. The end of {folder / LOG}:\n  {shown_lines}"

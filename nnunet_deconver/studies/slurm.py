"""Runs a study on a SLURM cluster, through submitit: job arrays, dependencies, time limits after which jobs go on.

Jobs share the file system alone. The scheduler starts them, also when nobody watches; the command watches.
"""

import json
import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_deconver.errors import InputError
from nnunet_deconver.files import read_json, written_whole
from nnunet_deconver.studies.claims import is_valid, read_claim
from nnunet_deconver.studies.resources import gpu_of, training_resources
from nnunet_deconver.studies.running import FAILURE, core_variables, describe_failure, run_task
from nnunet_deconver.studies.study import read_study
from nnunet_deconver.studies.tasks import EVALUATE, EVALUATE_TEST, PREDICT, REPORT, TRAIN, VALIDATE, Task, Workspace

JOBS = "jobs.json"
VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer")
# Seconds before its time limit at which a job stops its training and queues itself again.
STOP_BEFORE = 120
EVALUATION_GB, EVALUATION_HOURS = 8.0, 12.0


def check_cluster() -> None:
    """Looks for what this engine takes.

    Raises:
        InputError: if SLURM or submitit is not there.
    """
    missing = [name for name in ("sbatch", "squeue", "scontrol") if shutil.which(name) is None]
    if missing:
        raise InputError(
            f"--engine slurm: {', '.join(missing)} not found, so there is no SLURM here; run it on a login node of the "
            "cluster, or take --engine local, or --engine print for another scheduler"
        )
    try:
        import submitit  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError('--engine slurm takes submitit; run: pip install "nnunet-deconver[cluster]"') from None
    try:
        queue()
    except (OSError, subprocess.SubprocessError) as error:
        reason = " ".join(str(getattr(error, "stderr", "") or error).split())
        raise InputError(f"--engine slurm: SLURM does not answer ({reason})") from error


@dataclass(frozen=True)
class Job:
    """What a job of the cluster runs: tasks one after the other.

    Attributes:
        out: folder of the study.
        tasks: names.
        variables: of nnU-Net, as they were when it was submitted.
    """

    out: str
    tasks: tuple[str, ...]
    variables: dict[str, str]

    def __call__(self) -> None:
        """Does the tasks, on the machine that the cluster chose."""
        os.environ.update(self.variables)
        extra = core_variables(int(os.environ.get("SLURM_CPUS_PER_TASK", "1")))
        workspace = Workspace.of(read_study(Path(self.out)), Path(self.out))
        for name in self.tasks:
            run_task(workspace, workspace.tasks[name], extra)

    def checkpoint(self) -> Any:
        """What submitit queues again when the time is over: the same, which goes on from the disk."""
        import submitit  # pyright: ignore[reportMissingImports]

        return submitit.helpers.DelayedSubmission(self)


def queue() -> dict[str, str]:
    """The jobs of this user that wait or run: number (of an array's, `12_3`) to state."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i|%T"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return dict(line.strip().split("|") for line in done.stdout.splitlines() if "|" in line)


class SlurmRun:
    """A run of a study on a cluster.

    Args:
        workspace: of the study.
        on_change: called with the names of the running tasks after each look.
        interval: seconds between two looks.
    """

    def __init__(
        self,
        workspace: Workspace,
        on_change: Callable[[list[str]], None] = lambda names: None,
        interval: float = 10.0,
    ) -> None:
        self.workspace = workspace
        self.on_change = on_change
        self.interval = interval
        self.folder = workspace.out / "slurm"
        path = self.folder / JOBS
        self.jobs: dict[str, str] = read_json(path) if path.is_file() else {}
        self._submitted: set[str] = set()  # numbers of jobs
        self._counted: dict[tuple[str, str], tuple[float, str | None]] = {}

    def run(self) -> dict[str, str]:
        """Submits what is not done and not queued, and watches until all has ended.

        Returns:
            What failed, see `LocalRun.run`.
        """
        self.submit()
        return self.watch()

    def submit(self) -> None:
        """Submits what is not done and not queued already."""
        queued = queue()
        wanted: dict[str, Task] = {}
        for task in self.workspace.tasks.values():
            if self.workspace.is_done(task):
                continue
            number = self.jobs.get(task.name)
            if number in queued:
                if not any(each.name in wanted for each in self.workspace.requires(task)):
                    continue
                # It waits for jobs that have failed meanwhile, not for those that are submitted in their place.
                subprocess.run(["scancel", str(number)], check=False, timeout=60)  # it may have ended just now
                del queued[number]
            wanted[task.name] = task
            (self.workspace.folder(task) / FAILURE).unlink(missing_ok=True)
        for task in wanted.values():
            if task.uses_device:  # all are counted before the first is submitted
                self._asked_for(task.dataset, task.model)
        self._submit(list(wanted.values()), queued)

    def _submit(self, wanted: Sequence[Task], queued: dict[str, str]) -> None:
        for equal in self.workspace.study.equal:
            trained = [task for task in wanted if task.equal == equal and task.kind in (TRAIN, VALIDATE)]
            self._submit_trainings(trained, queued)
        for kind in (PREDICT, EVALUATE, EVALUATE_TEST, REPORT):
            for task in wanted:
                if task.kind == kind:
                    self._submit_one(task, queued)

    def _submit_trainings(self, tasks: Sequence[Task], queued: dict[str, str]) -> None:
        # What was trained and not validated is one job, too.
        pairs: dict[Task, list[str]] = {}
        for task in tasks:
            pairs.setdefault(replace(task, kind=TRAIN), []).append(task.name)
        groups: dict[tuple[str, str], list[Task]] = {}
        for task in pairs:
            groups.setdefault((task.dataset, task.model), []).append(task)
        for (dataset, model), trainings in groups.items():
            executor = self._executor(dataset, model, self._waits_for(trainings, queued))
            with executor.batch():
                submitted = [(pairs[task], executor.submit(self._job(pairs[task]))) for task in trainings]
            self._note((name, job.job_id) for names, job in submitted for name in names)

    def _submit_one(self, task: Task, queued: dict[str, str]) -> None:
        executor = self._executor(task.dataset, task.model, self._waits_for([task], queued), task.kind)
        self._note([(task.name, executor.submit(self._job([task.name])).job_id)])

    def _job(self, names: Sequence[str]) -> Job:
        variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        return Job(str(self.workspace.out), tuple(names), variables)

    def _waits_for(self, tasks: Sequence[Task], queued: dict[str, str]) -> list[str]:
        needed = {each.name: None for task in tasks for each in self.workspace.requires(task)}
        own = {task.name for task in tasks}
        numbers = [self.jobs.get(name) for name in needed if name not in own]
        submitted = {number for number in self.jobs.values() if number in queued or number in self._submitted}
        return list(dict.fromkeys(number for number in numbers if number in submitted))

    def _note(self, jobs: Iterable[tuple[str, str]]) -> None:
        # At once: a command that is killed knows what it submitted. What it does not know is no harm, as a task that
        # another job works on is waited for.
        for name, number in jobs:
            self.jobs[name] = number
            self._submitted.add(number)
        with written_whole(self.folder / JOBS) as file:
            json.dump(self.jobs, file, indent=1)

    def _executor(self, dataset: str, model: str, waits_for: Sequence[str], kind: str = TRAIN) -> Any:
        import submitit  # pyright: ignore[reportMissingImports]

        self.folder.mkdir(parents=True, exist_ok=True)
        cluster = self.workspace.study.cluster
        further: dict[str, Any] = {"requeue": True, **cluster.sbatch}
        options: dict[str, Any] = {"timeout_min": math.ceil(60 * cluster.hours), "slurm_cpus_per_task": cluster.cpus}
        if kind in (TRAIN, PREDICT):
            memory, gres = self._asked_for(dataset, model)
            further |= {"gres": gres} if gres else {}
        else:
            memory = cluster.memory_gb or EVALUATION_GB
            options["timeout_min"] = math.ceil(60 * min(cluster.hours, EVALUATION_HOURS))
        if waits_for:
            # Also where one of them failed: the job then says what it lacks.
            further["dependency"] = f"afterany:{':'.join(waits_for)}"
        # A time limit is no failure: a training may be queued again as often as it takes.
        executor = submitit.AutoExecutor(self.folder, cluster="slurm", slurm_max_num_timeout=10_000)
        executor.update_parameters(
            name=f"study-{kind}",
            mem_gb=memory,
            slurm_setup=list(cluster.setup),
            slurm_signal_delay_s=STOP_BEFORE,
            slurm_additional_parameters=further,
            **({"slurm_array_parallelism": cluster.parallel} if cluster.parallel else {}),
            **options,
        )
        return executor

    def _asked_for(self, dataset: str, model: str) -> tuple[float, str | None]:
        """Main memory of a training, in GB, and its GPUs, None on a CPU."""
        if (dataset, model) not in self._counted:
            study, cluster = self.workspace.study, self.workspace.study.cluster
            needed = training_resources(self.workspace, dataset, model, cluster.cpus)
            gres = None
            if study.device == "cuda":
                gres = f"{gpu_of(cluster.gpus, needed.gpu_memory) or 'gpu'}:{study.num_gpus}"
            self._counted[dataset, model] = cluster.memory_gb or math.ceil(needed.memory / 1e9), gres
        return self._counted[dataset, model]

    def watch(self) -> dict[str, str]:
        """Waits until no job of the study is queued; see `run` for what it returns."""
        while True:
            try:
                queued = queue()
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
                time.sleep(self.interval)  # the controller is busy, or restarts
                continue
            open_tasks = [task for task in self.workspace.tasks.values() if not self.workspace.is_done(task)]
            active = [task for task in open_tasks if self.jobs.get(task.name) in queued]
            self.on_change([task.name for task in active if queued[self.jobs[task.name]] == "RUNNING"])
            if not active:
                return self._problems(open_tasks)
            time.sleep(self.interval)

    def _problems(self, open_tasks: Sequence[Task]) -> dict[str, str]:
        problems = {}
        for task in open_tasks:
            claim = read_claim(self.workspace.claim(task))
            if claim is not None and is_valid(self.workspace.claim(task), claim):
                problems[task.name] = f"{task.name}: another process works on it, on {claim.get('host')}"
            elif (text := describe_failure(self.workspace, task)) is not None:
                problems[task.name] = text
            elif all(map(self.workspace.is_done, self.workspace.requires(task))):
                number = self.jobs.get(task.name)
                problems[task.name] = (
                    f"{task.name}: its job {number} ended without it: cancelled, killed, or out of memory or time; "
                    f"see {self.folder}/{number}_*_log.*, and run the same command to go on"
                )
        return problems

"""Runs a study on this machine: several tasks at a time, each on a device or on cores of its own."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from nnunet_deconver.cores import usable_cores
from nnunet_deconver.errors import ArgumentError, InputError
from nnunet_deconver.studies.running import Stopped, core_variables, run_task
from nnunet_deconver.studies.study import Study
from nnunet_deconver.studies.tasks import Task, Workspace


@dataclass(frozen=True)
class Slot:
    """What one task at a time runs on.

    Attributes:
        name: to show.
        cores: numbers; none for all.
        variables: for its commands.
    """

    name: str
    cores: tuple[int, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)


def find_slots(study: Study, workers: int | None) -> list[Slot]:
    """The slots of this machine: on GPUs one per GPU (or as many as a training takes), on a CPU equal parts of it.

    Args:
        study: to run.
        workers: number of slots; None for one per GPU, or one on a CPU. More than GPUs share them.

    Raises:
        InputError: if there are too few GPUs or cores.
    """
    if workers is not None and workers < 1:
        raise ArgumentError("workers", workers, "must be at least 1")
    cores = usable_cores()
    if study.device != "cuda":
        count = workers or 1
        if count > len(cores):
            raise ArgumentError("workers", count, f"there are {len(cores)} cores; take that at most")
        parts = [cores[i * len(cores) // count : (i + 1) * len(cores) // count] for i in range(count)]
        return [Slot(f"cores {','.join(map(str, part))}", part, core_variables(len(part))) for part in parts]
    groups = _gpu_groups(study.num_gpus)
    chosen = [groups[i % len(groups)] for i in range(workers or len(groups))]
    return [Slot(f"GPU {','.join(group)}", (), {"CUDA_VISIBLE_DEVICES": ",".join(group)}) for group in chosen]


def _gpu_groups(size: int) -> list[list[str]]:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        import torch

        names = [str(number) for number in range(torch.cuda.device_count())]
    else:
        names = [name.strip() for name in listed.split(",") if name.strip()]
    groups = [names[start : start + size] for start in range(0, len(names) - size + 1, size)]
    if not groups:
        raise InputError(
            f"a training takes {size} GPU{'s' if size > 1 else ''}, and there are {len(names)} here; run the study "
            'where there are more, or set device = "cpu"'
        )
    return groups


@contextmanager
def _interrupted_by(*signals: signal.Signals) -> Iterator[None]:
    """Lets signals end the study as Ctrl-C does, with what it started: a lost connection is one."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # nohup has the loss of a connection ignored.
    handlers = {each: signal.signal(each, interrupted) for each in signals if signal.getsignal(each) != signal.SIG_IGN}
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)


class LocalRun:
    """A run of a study on this machine.

    Args:
        workspace: of the study.
        slots: to run on.
        on_change: called with the names of the running tasks whenever they change.
    """

    def __init__(
        self, workspace: Workspace, slots: Sequence[Slot], on_change: Callable[[list[str]], None] = lambda names: None
    ) -> None:
        self.workspace = workspace
        self.slots = slots
        self.on_change = on_change
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.left = list(workspace.tasks.values())
        self.running: dict[str, Task] = {}
        self.problems: dict[str, str] = {}

    def run(self) -> dict[str, str]:
        """Does all tasks that can be done.

        Returns:
            What failed: the task's name to how, with the end of its log.
        """
        # Not by joining threads with a timeout: an interrupted join takes a thread for ended (Python 3.11).
        with _interrupted_by(signal.SIGTERM, signal.SIGHUP), ThreadPoolExecutor(len(self.slots)) as pool:
            try:
                for work in [pool.submit(self._work, slot) for slot in self.slots]:
                    work.result()
            finally:
                self.stop.set()
        return self.problems

    def _work(self, slot: Slot) -> None:
        if slot.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, slot.cores)  # of this thread, and of what it starts
        while not self.stop.is_set():
            task = self._next()
            if task is None:
                with self.lock:
                    if not self.running or not self.left:
                        return
                self.stop.wait(1)
                continue
            try:
                run_task(self.workspace, task, slot.variables, self.stop)
            except Stopped:
                return
            except InputError as error:
                self.problems[task.name] = str(error)
            except BaseException:  # of this program: the others end, too
                self.stop.set()
                raise
            finally:
                with self.lock:
                    del self.running[task.name]
                    self.on_change(list(self.running))

    def _next(self) -> Task | None:
        with self.lock:
            for task in list(self.left):
                if self.workspace.is_done(task):
                    self.left.remove(task)
                elif all(
                    each.name not in self.running and self.workspace.is_done(each)
                    for each in self.workspace.requires(task)
                ):
                    self.left.remove(task)
                    self.running[task.name] = task
                    self.on_change(list(self.running))
                    return task
        return None

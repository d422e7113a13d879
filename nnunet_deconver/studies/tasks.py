"""The tasks of a study: what each takes, the command that does it, and whether the disk says that it is done.

Nothing else is noted of what is done: a study goes on from what nnU-Net left, whoever made it.
"""

import json
import shlex
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from nnunet_deconver.errors import InputError
from nnunet_deconver.files import read_json, written_whole
from nnunet_deconver.integration.datasets import variable_folder
from nnunet_deconver.integration.plans import read_dataset_json, read_plans
from nnunet_deconver.metrics.comparison import file_name
from nnunet_deconver.models.checkpoint import CHECKPOINTS
from nnunet_deconver.models.training_log import noted_number, read_curves
from nnunet_deconver.studies.study import CROSS_VALIDATION, ITERATIONS, PAGE, TEST, TIME, Model, Study

TRAIN, VALIDATE, PREDICT, EVALUATE, EVALUATE_TEST, REPORT = (
    "train",
    "validate",
    "predict",
    "evaluate",
    "evaluate_test",
    "report",
)


@dataclass(frozen=True)
class Task:
    """A piece of work, done by one command.

    Attributes:
        kind: one of the names above.
        dataset: name; empty for the report.
        model: name in the study, likewise.
        equal: what its training has in common with the reference's.
        seed: None where the study has none.
        fold: None for what takes all folds.
    """

    kind: str
    dataset: str = ""
    model: str = ""
    equal: str = ""
    seed: int | None = None
    fold: int | None = None

    @property
    def name(self) -> str:
        """What it is called in commands, and its folder in the study's."""
        parts = [self.kind, self.dataset, file_name(self.model), self.equal]
        parts += [] if self.seed is None else [f"seed_{self.seed}"]
        parts += [] if self.fold is None else [f"fold_{self.fold}"]
        return "/".join(filter(None, parts))

    @property
    def uses_device(self) -> bool:
        """Whether it runs on the study's device, rather than on the CPU."""
        return self.kind in (TRAIN, VALIDATE, PREDICT)


@dataclass(frozen=True)
class Workspace:
    """A study and where its files are.

    Attributes:
        study: what it is.
        out: its folder.
        raw: nnUNet_raw.
        preprocessed: nnUNet_preprocessed.
        results: nnUNet_results.
    """

    study: Study
    out: Path
    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def of(cls, study: Study, out: Path) -> "Workspace":
        """The study with the folders that nnU-Net's variables name.

        Raises:
            InputError: if one is not set, or is no folder.
        """
        return cls(study, out.resolve(), *map(variable_folder, ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")))

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """All tasks by name, each after those that it needs."""
        return {task.name: task for task in self._tasks()}

    def _tasks(self) -> Iterator[Task]:
        study = self.study
        for equal in study.equal:
            # A study that ends early has trained all models alike.
            for fold in study.folds:
                for seed in study.runs:
                    for dataset in study.datasets:
                        for model in self.trained(equal):
                            task = Task(TRAIN, dataset, model.name, equal, seed, fold)
                            yield task
                            yield replace(task, kind=VALIDATE)
            for seed in study.runs:
                for dataset in study.datasets:
                    for model in self.trained(equal):
                        task = Task(EVALUATE, dataset, model.name, equal, seed)
                        yield task
                        if self.has_test(dataset):
                            yield replace(task, kind=PREDICT)
                            yield replace(task, kind=EVALUATE_TEST)
        yield Task(REPORT)

    def trained(self, equal: str) -> tuple[Model, ...]:
        """The models that are trained: at equal time the reference is as it was, as its time is the measure."""
        models = self.study.models
        return tuple(model for model in models if equal == ITERATIONS or model.name != self.study.reference)

    def requires(self, task: Task) -> list[Task]:
        """The tasks that have to be done before."""
        folds = [replace(task, fold=fold) for fold in self.study.folds]
        if task.kind == TRAIN:
            return self._measured(task) if task.equal == TIME else []
        if task.kind == VALIDATE:
            return [replace(task, kind=TRAIN)]
        if task.kind == EVALUATE:
            return [replace(each, kind=VALIDATE) for each in folds]
        if task.kind == PREDICT:
            return [replace(each, kind=TRAIN) for each in folds]
        if task.kind == EVALUATE_TEST:
            return [replace(task, kind=PREDICT)]
        return [each for each in self.tasks.values() if each.kind in (EVALUATE, EVALUATE_TEST)]

    def _measured(self, task: Task) -> list[Task]:
        return [
            Task(TRAIN, task.dataset, model, ITERATIONS, seed, fold)
            for model in (self.study.reference, task.model)
            for seed in self.study.runs
            for fold in self.study.folds
        ]

    def has_test(self, dataset: str) -> bool:
        """Whether the dataset has test images with truth."""
        return all(any((self.raw / dataset / name).glob("*")) for name in ("imagesTs", "labelsTs"))

    def folder(self, task: Task) -> Path:
        """Where log and failure of a task are."""
        return self.out / "tasks" / task.name

    def claim(self, task: Task) -> Path:
        """The file that says who works on a task; nnU-Net's training also validates, so both have one."""
        return self.folder(replace(task, kind=TRAIN) if task.kind == VALIDATE else task) / "running.json"

    def configuration(self, dataset: str, model: Model) -> str:
        """The configuration of a model on a dataset.

        Raises:
            InputError: if the dataset has no such plans.
        """
        names = _configurations(self.preprocessed / dataset / f"{model.plans}.json")
        return model.configuration or ("3d_fullres" if "3d_fullres" in names else "2d")

    def trainer(self, task: Task) -> str:
        """The trainer's name, with length and seed as its options.

        Raises:
            InputError: at equal time, if the trainings that say how long are not done.
        """
        study = self.study
        name = study.model(task.model).trainer
        epochs = study.epochs if task.equal == ITERATIONS else self.equal_time(task.dataset, task.model)
        name += f"_{epochs}epoch{'s' if epochs > 1 else ''}" if epochs else ""
        name += f"_{study.iterations}iterations" if study.iterations else ""
        return name + (f"_seed{task.seed}" if task.seed is not None else "")

    def model_folder(self, task: Task) -> Path:
        """nnU-Net's folder of the model that a task trains or uses."""
        model = self.study.model(task.model)
        configuration = self.configuration(task.dataset, model)
        return self.results / task.dataset / f"{self.trainer(task)}__{model.plans}__{configuration}"

    def fold_folder(self, task: Task) -> Path:
        """nnU-Net's folder of the fold that a task trains or validates."""
        return self.model_folder(task) / f"fold_{task.fold}"

    def predictions(self, task: Task) -> Path:
        """The folder of the predictions of the test images."""
        return self.out / "predictions" / replace(task, kind=PREDICT, fold=None).name.partition("/")[2]

    def evaluation(self, task: Task) -> Path:
        """The folder of an evaluation."""
        on = TEST if task.kind == EVALUATE_TEST else CROSS_VALIDATION
        return self.out / "evaluations" / on / task.name.partition("/")[2]

    def equal_time(self, dataset: str, model: str) -> int:
        """The epochs of a model in which its training takes as long as the reference's.

        They are noted once they are known, and never change then: all folds and seeds are trained alike.

        Raises:
            InputError: if the trainings at equal iterations, which are the measure, are not all done.
        """
        path = self.out / "lengths" / dataset / f"{file_name(model)}.json"
        if not path.is_file():
            task = Task(TRAIN, dataset, model, TIME)
            # The first one: this is asked for every task of a study, again and again.
            missing = next((each.name for each in self._measured(task) if not self.is_done(each)), None)
            if missing is not None:
                raise InputError(
                    f"how many epochs {model} has at equal time is known once it and {self.study.reference} are "
                    f"trained at equal iterations, and {missing} is not done"
                )
            times = {name: self._epoch_seconds(dataset, name) for name in (self.study.reference, model)}
            reference = Task(TRAIN, dataset, self.study.reference, ITERATIONS, self.study.runs[0], self.study.folds[0])
            epochs = noted_number(self.fold_folder(reference), "num_epochs")
            if epochs is None:
                raise InputError(f"{self.fold_folder(reference)}: its debug.json does not say how many epochs it has")
            seconds = epochs * times[self.study.reference]
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as file:
                length = {"epochs": max(1, round(seconds / times[model])), "seconds_of_an_epoch": times}
                json.dump({**length, "seconds_of_the_reference": seconds}, file, indent=1)
        return int(read_json(path)["epochs"])

    def _epoch_seconds(self, dataset: str, model: str) -> float:
        """What an epoch takes: of each training the fastest, as others may have run beside it; their median."""
        fastest = []
        for seed in self.study.runs:
            for fold in self.study.folds:
                folder = self.fold_folder(Task(TRAIN, dataset, model, ITERATIONS, seed, fold))
                curves = read_curves(folder)
                if curves is None or np.isnan(curves.seconds).all():
                    raise InputError(f"{folder}: its training_log_*.txt do not say how long an epoch took")
                fastest.append(np.nanmin(curves.seconds))
        return float(np.median(fastest))

    def command(self, task: Task) -> list[str]:
        """The command that does a task, or goes on with it.

        Raises:
            InputError: if what it needs is not done.
        """
        study, ours = self.study, [sys.executable, "-m", "nnunet_deconver"]
        if task.kind == REPORT:
            return [*ours, "study", "report", str(self.out)]
        if task.kind in (EVALUATE, EVALUATE_TEST):
            model, out = str(self.model_folder(task)), ["-o", str(self.evaluation(task))]
            out += ["--like", study.like] if study.like else []
            if task.kind == EVALUATE:
                return [*ours, "evaluate", "--model", model, "--folds", *map(str, study.folds), *out]
            truth = self.raw / task.dataset / "labelsTs"
            return [*ours, "evaluate", str(truth), str(self.predictions(task)), "--model", model, *out]
        model = study.model(task.model)
        configuration = self.configuration(task.dataset, model)
        chosen = ["-p", model.plans, "-tr", self.trainer(task), "-device", study.device]
        if task.kind == PREDICT:
            where = ["-i", str(self.raw / task.dataset / "imagesTs"), "-o", str(unfinished(self.predictions(task)))]
            what = ["-d", task.dataset, "-c", configuration, "-f", *map(str, study.folds)]
            return ["nnUNetv2_predict", *where, *what, *chosen, "--continue_prediction"]
        command = ["nnUNetv2_train", task.dataset, configuration, str(task.fold), *chosen]
        command += ["-num_gpus", str(study.num_gpus)] if study.num_gpus > 1 else []
        if task.kind == VALIDATE:
            return [*command, "--val"]
        return [*command, *(["--c"] if any((self.fold_folder(task) / name).exists() for name in CHECKPOINTS) else [])]

    def is_done(self, task: Task) -> bool:
        """Whether the disk says that a task is done."""
        try:
            if task.kind == TRAIN:
                # A checkpoint is a zip file, whose directory is at its end: one that is cut short has none.
                return zipfile.is_zipfile(self.fold_folder(task) / CHECKPOINTS[0])
            if task.kind == VALIDATE:
                return _is_json(self.fold_folder(task) / "validation" / "summary.json")
            if task.kind == PREDICT:
                return self.predictions(task).is_dir()
            if task.kind in (EVALUATE, EVALUATE_TEST):
                made = self._sources(task)
                return all(made) and _newer(self.evaluation(task) / "summary.json", made)
            evaluations = [self.evaluation(each) / "summary.json" for each in self.requires(task)]
            return _newer(self.out / PAGE, evaluations)
        except InputError:  # at equal time, of a training whose length is not known yet
            return False

    def _sources(self, task: Task) -> list[Path]:
        if task.kind == EVALUATE_TEST:
            return [self.predictions(task)] if self.predictions(task).is_dir() else []
        folders = [self.fold_folder(each) for each in self.requires(task)]
        return [folder / "validation" / "summary.json" for folder in folders]

    def prepare(self, task: Task) -> None:
        """Puts away what a killed process left and no command goes on from."""
        if task.kind == TRAIN:
            for name in CHECKPOINTS:
                path = self.fold_folder(task) / name
                if path.exists() and not zipfile.is_zipfile(path):
                    path.replace(path.with_name(f"{name}.cut_short"))
        if task.kind == PREDICT:
            self._remove_damaged(unfinished(self.predictions(task)), task.dataset)

    def _remove_damaged(self, folder: Path, dataset: str) -> None:
        # nnU-Net goes on with the cases that have no file, whole or not.
        from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

        dataset_json = read_dataset_json(self.raw / dataset / "dataset.json")
        for path in sorted(folder.glob(f"*{dataset_json['file_ending']}")):
            try:
                reader = determine_reader_writer_from_dataset_json(dataset_json, str(path), verbose=False)
                reader().read_seg(str(path))
            except Exception:  # each reader raises its own
                path.unlink()

    def finish(self, task: Task) -> None:
        """Gives what a command made the name that says that it is whole."""
        if task.kind == PREDICT:
            unfinished(self.predictions(task)).rename(self.predictions(task))

    def started(self, task: Task) -> bool:
        """Whether there is something to go on from."""
        with suppress(InputError):
            if task.kind == TRAIN:
                return self.fold_folder(task).is_dir()
            if task.kind == VALIDATE:
                return (self.fold_folder(task) / "validation").is_dir() and self.is_done(replace(task, kind=TRAIN))
            if task.kind == PREDICT:
                return unfinished(self.predictions(task)).is_dir()
            if task.kind in (EVALUATE, EVALUATE_TEST):
                return self.evaluation(task).is_dir()
        return False


def unfinished(folder: Path) -> Path:
    """The name of a folder until it is whole."""
    return folder.with_name(f"{folder.name}.unfinished")


def shown(command: list[str]) -> str:
    """A command as one types it."""
    words = ["nnunet-deconver", *command[3:]] if command[1:3] == ["-m", "nnunet_deconver"] else command
    return shlex.join(words)


@cache
def _configurations(plans: Path) -> frozenset[str]:
    return frozenset(read_plans(plans)["configurations"])


def _is_json(path: Path) -> bool:
    try:
        read_json(path)
    except InputError:
        return False
    return True


def _newer(path: Path, sources: list[Path]) -> bool:
    try:
        made = path.stat().st_mtime_ns
        return all(source.stat().st_mtime_ns <= made for source in sources)
    except OSError:
        return False

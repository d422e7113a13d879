"""What a study is: datasets x trainers x folds x seeds, and how long each is trained."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from nnunet_deconver.errors import InputError
from nnunet_deconver.files import check_is_file, check_schema, read_json, written_whole
from nnunet_deconver.metrics.comparison import file_name
from nnunet_deconver.metrics.definitions import PRACTICES, Settings, like

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports] not there on later Pythons

FILE = "study.json"
# What trainings have in common with the reference's.
ITERATIONS, TIME = "iterations", "time"
# What predictions are of.
CROSS_VALIDATION, TEST = "cross-validation", "test"
# The page of the results.
PAGE = "report.html"


@dataclass(frozen=True)
class Model:
    """What is compared.

    Attributes:
        name: in tables and folders.
        trainer: of nnU-Net, by name, see `trainers.options`.
        plans: their name.
        configuration: its name; None for 3d_fullres where the dataset's plans have it, else 2d.
    """

    name: str
    trainer: str
    plans: str
    configuration: str | None


@dataclass(frozen=True)
class Cluster:
    """What a scheduler is asked for.

    Attributes:
        hours: after which a training is stopped, queued again and goes on.
        memory_gb: main memory of a training; None for an estimate.
        cpus: cores of a training.
        parallel: trainings at a time; None for as many as the scheduler gives.
        setup: lines of shell that come before a task, such as `module load`.
        gpus: the kinds there are, each with `memory_gb` and what to ask for (`gres`); a training takes the smallest in
            which it fits. None for any one.
        sbatch: further options of sbatch, such as partition and account.
    """

    hours: float = 24.0
    memory_gb: float | None = None
    cpus: int = 8
    parallel: int | None = None
    setup: tuple[str, ...] = ()
    gpus: tuple[Mapping[str, Any], ...] = ()
    sbatch: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        datasets: names.
        models: what is compared.
        folds: numbers.
        seeds: of `trainers.options`; none for one training each, unseeded.
        epochs: of each training, at equal iterations; None for what the trainers have.
        iterations: of an epoch; None for what the trainers have.
        equal: what the trainings have in common with those of the reference: iterations, time, or first one and then
            the other.
        reference: name of the model that the others are compared with.
        device: of the trainings.
        num_gpus: of a training.
        metrics: that are compared; None for the usual ones.
        like: see `metrics.definitions.PRACTICES`; None for none.
        cluster: what a scheduler is asked for.
    """

    datasets: tuple[str, ...]
    models: tuple[Model, ...]
    folds: tuple[int, ...] = (0, 1, 2, 3, 4)
    seeds: tuple[int, ...] = ()
    epochs: int | None = None
    iterations: int | None = None
    equal: tuple[str, ...] = (ITERATIONS,)
    reference: str = ""
    device: str = "cuda"
    num_gpus: int = 1
    metrics: tuple[str, ...] | None = None
    like: str | None = None
    cluster: Cluster = Cluster()

    @property
    def settings(self) -> Settings:
        """How predictions are measured."""
        return like(self.like) if self.like else Settings()

    @property
    def runs(self) -> tuple[int | None, ...]:
        """The seeds of the trainings that a fold has: None for one that is not seeded."""
        return self.seeds or (None,)

    def model(self, name: str) -> Model:
        """The model of a name."""
        return next(model for model in self.models if model.name == name)


@cache
def _schema() -> dict:
    return read_json(Path(__file__).with_name("study.schema.json"))


def read_study(path: Path) -> Study:
    """Reads a study: a TOML file, or the folder of one that was begun.

    Raises:
        InputError: if there is no such file, or a field is not what it must be.
    """
    if path.is_dir():
        return _of_json(read_json(path / FILE, "a folder that `nnunet-deconver study` wrote to has one"), path / FILE)
    check_is_file(path, "name a file such as study.toml, or the folder of a study")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; name a file such as study.toml, or the folder of a study") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is not TOML ({error})") from error
    return make_study(content, str(path))


def make_study(content: dict, where: str) -> Study:
    """A study of what its file says.

    Args:
        content: of the file; docs/studies.md has the fields.
        where: it is from, for messages.

    Raises:
        InputError: naming the field that is wrong, what it is and what is allowed.
    """
    from nnunet_deconver.integration.datasets import dataset_name

    content = check_schema(content, _schema(), where)
    try:
        datasets = tuple(dataset_name(str(each)) for each in content["datasets"])
    except InputError as error:
        raise InputError(f"{where}: datasets: {error}") from error
    models = _models(content, where)
    folds, seeds = tuple(content.get("folds", (0, 1, 2, 3, 4))), tuple(content.get("seeds", ()))
    names = tuple(model.name for model in models)
    # Names of models are those of folders, too, in which some characters are alike.
    listed = {"datasets": datasets, "trainers": tuple(map(file_name, names)), "folds": folds, "seeds": seeds}
    for key, values in listed.items():
        twice = sorted({str(value) for value in values if values.count(value) > 1})
        if twice:
            hint = "; give them different names, {trainer = ..., name = ...}" if key == "trainers" else ""
            raise InputError(f"{where}: {key}: {', '.join(twice)} is there twice{hint}")
    reference = content.get("reference", names[0])
    if reference not in names:
        raise InputError(f"{where}: reference: must be one of {', '.join(names)}, got {reference}")
    # Time is measured on the trainings at equal iterations.
    equal = (ITERATIONS, TIME) if TIME in content.get("equal", ()) else (ITERATIONS,)
    practice = content.get("like")
    if practice is not None and practice not in PRACTICES:
        raise InputError(f"{where}: like: must be one of {', '.join(PRACTICES)}, got {practice}")
    device, num_gpus = content.get("device", "cuda"), content.get("num_gpus", 1)
    if num_gpus > 1 and device != "cuda":
        raise InputError(f"{where}: num_gpus: {num_gpus} goes with device cuda, got {device}")
    cluster: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in content.get("cluster", {}).items()
    }
    return Study(
        datasets,
        models,
        folds,
        seeds,
        content.get("epochs"),
        content.get("iterations"),
        equal,
        reference,
        device,
        num_gpus,
        tuple(content["metrics"]) if "metrics" in content else None,
        practice,
        Cluster(**cluster),
    )


def _models(content: dict, where: str) -> tuple[Model, ...]:
    all_plans, configurations = content.get("plans", ["nnUNetPlans"]), content.get("configurations", [None])
    models = []
    for entry in content["trainers"]:
        entry = {"trainer": entry} if isinstance(entry, str) else entry
        plans = [entry["plans"]] if "plans" in entry else all_plans
        chosen = [entry["configuration"]] if "configuration" in entry else configurations
        for one, configuration in product(plans, chosen):
            name = entry.get("name", entry["trainer"])
            # What all models share says nothing.
            name += f" {one}" if len(plans) > 1 else ""
            name += f" {configuration}" if len(chosen) > 1 else ""
            models.append(Model(name, entry["trainer"], one, configuration))
    return tuple(models)


def as_json(study: Study) -> dict:
    """A study as JSON has it."""
    return json.loads(json.dumps(asdict(study)))


def _of_json(content: dict, where: Path) -> Study:
    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    try:
        values = {key: tuples(value) for key, value in content.items()}
        values["models"] = tuple(Model(**each) for each in content["models"])
        values["cluster"] = Cluster(**{key: tuples(value) for key, value in content["cluster"].items()})
        return Study(**values)
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: is not what `nnunet-deconver study` writes ({error})") from error


def keep_study(study: Study, out: Path) -> None:
    """Notes in the folder of a study what it is.

    A study may grow: by datasets, trainers, folds and seeds. What is there stays what it was, so that the results in
    the folder belong together.

    Args:
        study: to note.
        out: its folder, made if there is none.

    Raises:
        InputError: if the folder has another study, naming what differs; nothing is changed.
    """
    path = out / FILE
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a folder for the study")
    if path.exists():
        differing = _differences(read_study(out), study)
        if differing:
            raise InputError(
                f"{out}: holds another study, with {'; '.join(differing)}. Choose another folder (-o): trainings that "
                "both have are found in nnUNet_results and not repeated"
            )
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty and holds no study; choose another folder (-o)")
    out.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        file.write(json.dumps(as_json(study), indent=1) + "\n")


def _differences(earlier: Study, now: Study) -> list[str]:
    found = []
    for key in ("datasets", "folds", "seeds"):
        gone = [str(each) for each in getattr(earlier, key) if each not in getattr(now, key)]
        if gone:
            found.append(f"{key} {', '.join(gone)} (now not)")
    if bool(earlier.seeds) != bool(now.seeds):
        found.append("seeds" if earlier.seeds else "no seeds")
    by_name = {model.name: model for model in now.models}
    for model in earlier.models:
        other = by_name.get(model.name)
        if other is None:
            found.append(f"the trainer {model.name} (now not)")
        elif other != model:
            pairs = {key: (value, asdict(other)[key]) for key, value in asdict(model).items()}
            changed = [f"{key} {one} (now {another})" for key, (one, another) in pairs.items() if one != another]
            found.append(f"{model.name}: {', '.join(changed)}")
    if not set(earlier.equal) <= set(now.equal):
        found.append("equal time (now not)")
    for key in ("epochs", "iterations", "reference", "device", "num_gpus", "metrics", "like"):
        one, another = getattr(earlier, key), getattr(now, key)
        if one != another:
            found.append(f"{key} {_said(one)} (now {_said(another)})")
    return found


def _said(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return "unset" if value is None else str(value)

"""A trained model as a folder with all that a container needs to predict on a platform."""

import json
import re
import shutil
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from string import Template

import torch
from torch import nn

from nnunet_deconver.errors import ArgumentError, InputError
from nnunet_deconver.files import made_whole
from nnunet_deconver.integration.installation import nnunetv2_folders
from nnunet_deconver.integration.plans import read_dataset_json, read_plans
from nnunet_deconver.integration.trainers import VARIABLE, external_folders, search_trainer
from nnunet_deconver.layers.nonnegative_deconvolution import NonnegativeDeconvolution
from nnunet_deconver.models.checkpoint import for_prediction, read_checkpoint, save_checkpoint
from nnunet_deconver.models.planned import channels_and_labels, plan_of
from nnunet_deconver.models.trainer import build_trained, find_trainer
from nnunet_deconver.networks.adapted import Adapted
from nnunet_deconver.submission.packages import installed_distribution, write_requirements
from nnunet_deconver.submission.targets import TARGETS, Target
from nnunet_deconver.submission.torch_builds import torch_build

# What Triton compiles at its first launch needs, besides Python's headers, which the image of Python has, and the
# driver's libcuda.so.1, which comes with the GPU.
# What names a folder, or how a file's name ends.
_SOCKET = r"\w[\w.-]*"
COMPILER = """apt-get update \\
    && apt-get install --yes --no-install-recommends gcc libc6-dev \\
    && rm -rf /var/lib/apt/lists/* \\
    && """
LABEL = """# Tells grand-challenge to send requests to a server that keeps running.
LABEL org.grand-challenge.api-method="invoke"
"""
UNPACK = "mkdir -p /tmp/model && tar -xzf model.tar.gz -C /tmp/model\n"


@dataclass
class Model:
    """What is exported of a trained model."""

    folder: Path
    checkpoint: str
    folds: list[str]
    trainer: str
    configuration: str
    plans: dict
    dataset: dict
    trust: bool = False


@dataclass
class Image:
    """What is chosen for the container's image."""

    target: str
    api: str
    torch: str
    cuda: str
    holds_model: bool


@dataclass
class Exported:
    """What `export_submission` exported: the model, what settings.json says, and the image to be built."""

    model: Model
    settings: dict
    image: Image


def export_submission(
    model: Path,
    out: Path,
    *,
    target: str = next(iter(TARGETS)),
    api: str | None = None,
    cuda: str | None = None,
    allow_cpu: bool = False,
    folds: Sequence[str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    mirroring: bool = True,
    everything_on_device: bool = True,
    input_sockets: Sequence[Sequence[str]] = (),
    outputs: Sequence[str] | None = None,
    output_socket: str | None = None,
    bake_model: bool = False,
    trust: bool = False,
) -> Exported:
    """Writes a folder with all that a container needs; `nnunet-deconver export-submission`, whose options these are.

    Args:
        model: model folder of nnU-Net.
        out: folder to make.
        target: key of `submission.targets.TARGETS`.
        api: "exec" or "invoke"; None for the target's.
        cuda: CUDA that torch's wheel is for; None for the target's.
        allow_cpu: compute on the CPU where there is a GPU that cannot be used.
        folds: None for the numbered ones that are there.
        checkpoint: name of the checkpoints.
        mirroring: predict mirrored images too.
        everything_on_device: keep whole images on the GPU.
        input_sockets: of the channels, for each interface.
        outputs: "labels=SOCKET" and "probability:NAME=SOCKET"; None for the labels.
        output_socket: the same as outputs=["labels=SOCKET"].
        bake_model: put the model into the image.
        trust: whether to unpickle the checkpoints and to import what the plans name, see `networks.trust`.

    Raises:
        InputError: if the model cannot be exported so, or `out` exists or cannot be written. Nothing is left then.
    """
    if out.exists():
        raise ArgumentError("out", out, "exists already; name a folder that does not")
    platform = TARGETS[target]
    api = api or platform.apis[0]
    if api not in platform.apis:
        raise ArgumentError("api", api, f"must be {' or '.join(platform.apis)} for --target {target}")
    version, cuda = choose_torch(cuda, platform)
    read = read_model(model, folds, checkpoint, trust)
    settings = {
        "folds": read.folds,
        "checkpoint": read.checkpoint,
        "mirroring": mirroring,
        "everything_on_device": everything_on_device,
        "allow_cpu": allow_cpu,
        "layout": platform.layout,
        "ending": platform.ending,
        "input_sockets": choose_inputs(read, platform, [list(sockets) for sockets in input_sockets]),
        "outputs": choose_outputs(read, platform, outputs, output_socket),
    }
    image = Image(target, api, version, cuda, bake_model or not platform.model_apart)
    export(read, settings, image, out)
    return Exported(read, settings, image)


def choose_torch(cuda: str | None, target: Target) -> tuple[str, str]:
    """The torch to install in the image.

    Args:
        cuda: chosen; None for the target's.
        target: where it will run.

    Returns:
        Version and CUDA.

    Raises:
        InputError: if PyTorch has no wheels for this CUDA.
    """
    version, built_for = installed_torch()
    try:
        return torch_build(version, built_for, cuda or target.cuda)
    except ValueError as error:
        raise ArgumentError("cuda", cuda, str(error).removeprefix("cuda ").partition("; got")[0]) from error


def installed_torch() -> tuple[str, str | None]:
    """Version of torch here, without what follows a plus, and CUDA it was built with."""
    return torch.__version__.partition("+")[0], torch.version.cuda


def choose_inputs(model: Model, target: Target, chosen: list[list[str]]) -> list[list[str]]:
    """Sockets, or suffixes of files, by channel, for each interface; none for the sockets as they come.

    Args:
        model: to export.
        target: where it will run.
        chosen: on the command line.

    Raises:
        InputError: unless there is one for each channel.
    """
    channels = model.dataset["channel_names"]
    names = ", ".join(f"{number}: {name}" for number, name in channels.items())
    # One image can have the three channels of a colour.
    colours = model.plans["image_reader_writer"] == "NaturalImage2DIO"
    for sockets in chosen:
        strange = [socket for socket in sockets if not re.fullmatch(_SOCKET, socket)]
        if strange:
            raise ArgumentError(
                "input_sockets",
                repr(strange[0]),
                "must be letters, digits and '_', after the first also '-' and '.'",
            )
        if not colours and len(sockets) != len(channels):
            raise ArgumentError(
                "input_sockets", " ".join(sockets), f"must be {len(channels)}, one per channel ({names})"
            )
        if target.layout == "files":
            raise ArgumentError(
                "input_sockets", " ".join(sockets), "images of this target are told by nnU-Net's numbers"
            )
    if chosen or target.layout != "cases":
        return chosen
    known = [target.suffixes.get(re.sub(r"[\W_]", "", name).lower()) for name in channels.values()]
    suffixes = [suffix for suffix in known if suffix is not None]
    if len(set(suffixes)) < len(channels):
        raise InputError(
            f"the channels ({names}) do not say how the names of their files end; add --input-sockets SUFFIX ..., one "
            f"per channel, such as {' '.join(dict.fromkeys(target.suffixes.values()))}"
        )
    return [suffixes]


def choose_outputs(model: Model, target: Target, outputs: Sequence[str] | None, socket: str | None) -> list[dict]:
    """What is written of each case, for settings.json.

    Args:
        model: to export.
        target: where it will run.
        outputs: of --output.
        socket: of --output-socket.

    Returns:
        For each output the name of the label or region whose probability it is, None for the labels, and its folder in
        the output.

    Raises:
        InputError: if there is no such label, or the target does not take the output.
    """
    if outputs and socket:
        raise ArgumentError("output_socket", socket, f"is the same as labels={socket} in --output; name it there")
    labels = model.dataset["labels"]
    regions = any(isinstance(value, (list, tuple)) and len(value) > 1 for value in labels.values())
    known = [name for name in labels if name != "ignore" and not (regions and name == "background")]
    chosen = []
    for output in outputs or [f"labels={socket}" if socket else "labels"]:
        what, equals, folder = output.rpartition("=")
        what, folder = (what, folder) if equals else (output, "")
        kind, _, name = what.partition(":")
        if kind not in ("labels", "probability") or (kind == "labels") != (what == "labels"):
            raise ArgumentError("output", output, "must be labels=SOCKET or probability:NAME=SOCKET")
        if kind == "probability" and name not in known:
            raise ArgumentError("output", output, f"the model has no {name}; it has {', '.join(known)}")
        if kind == "probability" and target.labels_only:
            raise ArgumentError("output", output, "this target takes labels and no other file; leave it out")
        if equals and not re.fullmatch(_SOCKET, folder):
            raise ArgumentError("output", output, "SOCKET must be the name of a folder")
        if target.layout == "sockets":
            if not folder and kind == "probability":
                raise ArgumentError("output", output, f"must name a socket, as in {output}=SOCKET")
            folder = f"images/{folder or 'segmentation'}"
        elif folder and target.labels_only:
            raise ArgumentError("output", output, f"this target takes labels in /output itself; leave out ={folder}")
        elif not folder and kind == "probability":
            raise ArgumentError(
                "output", output, f"must name a folder, as in {output}=FOLDER; the labels are in /output"
            )
        chosen.append({"probability": name or None, "folder": folder})
    folders = [output["folder"] for output in chosen]
    if len(set(folders)) < len(folders):
        raise ArgumentError("output", " ".join(outputs or ()), "each must have a SOCKET of its own")
    return chosen


def describe_inputs(settings: dict) -> str:
    """What `choose_inputs` chose, in words."""
    if settings["layout"] == "files":
        return "CASE_0000, CASE_0001, ... by channel"
    kind = "sockets" if settings["layout"] == "sockets" else "files that end in"
    ways = " or ".join(" ".join(way) for way in settings["input_sockets"])
    return f"{kind} {ways}" if ways else "the image sockets in the order of inputs.json"


def describe_outputs(settings: dict) -> str:
    """What `choose_outputs` chose, in words."""
    what = (
        (f"probability of {output['probability']}" if output["probability"] else "labels", output["folder"])
        for output in settings["outputs"]
    )
    return ", ".join(f"{name} in /output{f'/{folder}' if folder else ''}" for name, folder in what)


def describe_torch(torch: str, cuda: str) -> str:
    """What `choose_torch` chose, in words."""
    here, _ = installed_torch()
    why = f"; {here}, as here, has no wheel for it" if torch != here else ""
    return f"{torch} for CUDA {cuda}{why}"


def read_model(folder: Path, folds: Sequence[str] | None, checkpoint: str, trust: bool = False) -> Model:
    """Reads what a model folder says of itself.

    Args:
        folder: as nnU-Net's training leaves it.
        folds: None for the numbered ones that have the checkpoint, or else the fold `all`.
        checkpoint: name of the checkpoints.
        trust: see `export_submission`.

    Raises:
        InputError: if something is missing, or the model cannot be exported.
    """
    what = "MODEL must be a trained model's folder, such as nnUNet_results/Dataset004_X/TRAINER__PLANS__CONFIGURATION"
    if Path(checkpoint).name != checkpoint:
        raise ArgumentError("checkpoint", checkpoint, "must be a file name, such as checkpoint_best.pth")
    plans, dataset = read_plans(folder / "plans.json", what), read_dataset_json(folder / "dataset.json", what)
    known = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}"))
    if not known:
        others = sorted({path.name for path in folder.glob("fold_*/*.pth")})
        raise InputError(
            f"{folder}: no fold has {checkpoint}; checkpoints there: {', '.join(others) or 'none'}; choose with "
            "--checkpoint, or train first"
        )
    folds = list(dict.fromkeys(folds or [fold for fold in known if fold != "all"] or known))
    unknown = [fold for fold in folds if fold not in known]
    if unknown:
        raise ArgumentError("folds", " ".join(unknown), f"{folder} has {checkpoint} for the folds {', '.join(known)}")
    read = read_checkpoint(folder / f"fold_{folds[0]}" / checkpoint, trust)
    configuration = read["init_args"]["configuration"]
    needed = {
        "plans.json": (plans, ("dataset_name", "plans_name", "image_reader_writer", "configurations")),
        "dataset.json": (dataset, ("channel_names", "labels", "file_ending")),
    }
    for name, (content, keys) in needed.items():
        missing = [key for key in keys if key not in content]
        if missing:
            raise InputError(f"{folder / name}: has no {', '.join(missing)}; {what}")
    _, planned = plan_of(plans, configuration, str(folder / "plans.json"), trust=trust)
    previous = planned.previous_stage_name
    if previous is not None:
        raise InputError(
            f"{folder}: {configuration} continues the predictions of {previous}, which a container of one model has "
            "not; export a model that is not a cascade"
        )
    return Model(folder, checkpoint, folds, read["trainer_name"], configuration, plans, dataset, trust)


def has_deconvolution(model: Model) -> bool:
    """Whether the model's network has nonnegative deconvolutions, which Triton computes where it can."""
    return any(isinstance(module, NonnegativeDeconvolution) for module in _network(model).modules())


def network_distributions(model: Model) -> list[str]:
    """Names of the installed distributions that the class of an adapted network comes from, besides this package's.

    Raises:
        InputError: if it comes from none, such as a file of the user's.
    """
    network = _network(model)
    if not isinstance(network, Adapted):
        return []
    package = network.plan.name.partition(".")[0]
    found = packages_distributions().get(package)
    if not found:
        raise InputError(
            f"the model's network {network.plan.name} is of no installed package, and would not be found in the "
            "container; make a package of its file, with a pyproject.toml, and install it with pip"
        )
    return found


def _network(model: Model) -> nn.Module:
    where = str(model.folder)
    plans, configuration = plan_of(model.plans, model.configuration, where, trust=model.trust)
    channels, labels = channels_and_labels(plans, configuration, model.dataset, where)
    trainer = find_trainer(model.trainer)
    return build_trained(trainer, plans, configuration, channels, labels.num_segmentation_heads, False)


def own_trainers(name: str) -> Path | None:
    """The user's folder with a trainer; None if the trainer is nnU-Net's or this package's.

    Raises:
        InputError: if there is no such trainer, or it would not be found in another nnU-Net.
    """
    from nnunet_deconver import trainers
    from nnunet_deconver.trainers.options import without_options

    name = without_options(name)
    if name in trainers.__all__:
        return None
    try:
        found = search_trainer(name)
    except InputError as error:
        raise InputError(
            f"the model's trainer {name} is not found ({error.__cause__}); export {VARIABLE}=FOLDER, with the folder "
            "of its file"
        ) from error
    module = Path(*found.__module__.split(".")).with_suffix(".py")
    for folder in external_folders():
        if (folder / module).is_file():
            return folder
    root = nnunetv2_folders()[0].parent
    nnunet = installed_distribution("nnunetv2")
    assert nnunet is not None  # it was imported from there
    files = {Path(file.locate()) for file in nnunet.files or ()}
    # An editable clone travels as a whole.
    if root / module not in files and nnunet.read_text("direct_url.json") is None:
        raise InputError(
            f"the model's trainer {name} is in {root / module}, which is not a file of nnU-Net's; move it to a folder "
            f"of its own and export {VARIABLE}=FOLDER"
        )
    return None


def export(model: Model, settings: dict, image: Image, out: Path) -> None:
    """Writes the folder, or nothing.

    Args:
        model: to export.
        settings: for settings.json.
        image: to be built of it.
        out: folder to make.

    Raises:
        InputError: if it cannot be written.
    """
    trainers, distributions = own_trainers(model.trainer), network_distributions(model)
    try:
        with made_whole(out) as folder:
            versions = write_requirements(folder, image.torch, image.cuda, distributions)
            folders = []
            if trainers is not None:
                folders.append("trainers")
                for path in trainers.rglob("*.py"):
                    copy = folder / "trainers" / path.relative_to(trainers)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)
            write_model(model, folder / "model")
            if image.holds_model:
                folders.append("model")
            else:
                pack(folder / "model", folder / "model.tar.gz")
            (folder / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
            write_files(model, settings, image, versions, folders, folder)
            readable(folder)
    except (OSError, RuntimeError) as error:  # torch's writer has an error of its own
        raise ArgumentError("out", out, f"cannot write there ({error}); choose another folder") from error


def readable(folder: Path) -> None:
    """Lets everybody read what is in a folder: a container may run as any user."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))


def write_model(model: Model, folder: Path) -> None:
    """Writes what prediction needs of a model, which is not the optimizer's state: half of a checkpoint and more."""
    folder.mkdir()
    for name, content in (("plans.json", model.plans), ("dataset.json", model.dataset)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    for fold in model.folds:
        checkpoint = read_checkpoint(model.folder / f"fold_{fold}" / model.checkpoint, model.trust)
        (folder / f"fold_{fold}").mkdir()
        save_checkpoint(for_prediction(checkpoint), folder / f"fold_{fold}" / model.checkpoint)


def pack(folder: Path, archive: Path) -> None:
    """Moves the content of a folder into an archive, readable for all and with nobody's name on it."""

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mode = 0o755 if entry.isdir() else 0o644
        return entry

    # Weights hardly get smaller; more effort is lost on them.
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name, filter=anonymous)
    shutil.rmtree(folder)


def write_files(
    model: Model, settings: dict, image: Image, versions: dict[str, str], folders: list[str], out: Path
) -> None:
    """Writes the files of `nnunet_deconver.submission`.

    Args:
        model: to export.
        settings: of settings.json.
        image: to be built.
        versions: of the packages, by name.
        folders: that are in the image beside inference.py.
        out: folder to write to.
    """
    target = TARGETS[image.target]
    compiler = target.can_use_triton and has_deconvolution(model)
    invoked = image.api == "invoke"
    ending = {"ending": target.ending or model.dataset["file_ending"]}
    values = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "compiler": COMPILER if compiler else "",
        "copied_folders": "".join(f"COPY --chown=algorithm:algorithm {name}/ {name}/\n" for name in folders),
        "bound_folders": "".join(f"    {name} /opt/algorithm/{name}\n" for name in folders),
        "label": LABEL if invoked else "",
        "arguments": ', "--api", "invoke"' if invoked else "",
        "dataset": model.plans["dataset_name"],
        "description": target.description,
        "trainer": model.trainer,
        "plans": model.plans["plans_name"],
        "configuration": model.configuration,
        "folds": ", ".join(model.folds),
        "checkpoint": model.checkpoint,
        "channels": ", ".join(f"{number}: {name}" for number, name in model.dataset["channel_names"].items()),
        "inputs": describe_inputs(settings),
        "outputs": describe_outputs(settings),
        "nnunet_deconver": versions["nnunet-deconver"],
        "nnunetv2": versions["nnunetv2"],
        "torch": describe_torch(image.torch, image.cuda),
        "reads": Template(target.reads).substitute(ending),
        "writes": Template(target.writes).substitute(ending),
        "hand_in": target.hand_in,
        "unpack": "" if image.holds_model else UNPACK,
        "model_option": "" if image.holds_model else " --model /tmp/model",
        "bind_model": "" if image.holds_model else " --bind /tmp/model:/opt/ml/model:ro",
        "triton": (
            "The image has a C compiler, which Triton needs for the fast kernels."
            if compiler
            else "The image has no C compiler: no GPU of this target, or nothing in this network, uses Triton."
        ),
    }
    source = Path(__file__).parent
    for name in ("Dockerfile", "README.md", "apptainer.def"):
        (out / name).write_text(Template((source / name).read_text()).substitute(values))
    for name in ("inference.py", "test_run.sh"):
        shutil.copy(source / name, out / name)
    (out / "test_run.sh").chmod(0o755)  # installers of wheels may have lost it

"""`nnunet-deconver export-submission`: a trained model as a container for a challenge."""

import argparse
import json
import shutil
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from string import Template

from nnunet_deconver.cli.datasets import read_json
from nnunet_deconver.cli.errors import CommandError
from nnunet_deconver.cli.nnunet import nnunetv2_folders, require_nnunetv2
from nnunet_deconver.cli.packages import installed_distribution, write_requirements
from nnunet_deconver.cli.status import find_trainer
from nnunet_deconver.cli.trainer_path import VARIABLE, external_folders
from nnunet_deconver.cli.upgrade_checkpoint import read_checkpoint


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


def add_parser(subparsers: argparse._SubParsersAction):
    """Adds the subcommand `export-submission`."""
    parser = subparsers.add_parser(
        "export-submission",
        help="make a container of a trained model, for a challenge",
        description="Writes a folder with all that a container needs to predict with a trained model as an algorithm "
        "of grand-challenge does: Dockerfile, exact requirements, inference.py and the model. Models of nnU-Net's own "
        "trainers, of this package's, and of trainers in folders that nnUNet_extTrainer lists.",
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="trained model: a folder TRAINER__PLANS__CONFIGURATION, with plans.json, dataset.json and fold_0, ...",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "-f", "--folds", nargs="+", metavar="FOLD", help="0, 1, ... or all; default: every numbered one that is there"
    )
    parser.add_argument(
        "--checkpoint", default="checkpoint_final.pth", metavar="NAME", help="default: checkpoint_final.pth"
    )
    parser.add_argument("--no-mirroring", action="store_true", help="predict once, not once per mirrored image: faster")
    parser.add_argument(
        "--not-on-device", action="store_true", help="keep whole images on the CPU: slower, less GPU memory"
    )
    parser.add_argument(
        "--input-sockets",
        nargs="+",
        default=[],
        metavar="SLUG",
        help="sockets of the model's channels, in their order; default: the image sockets as inputs.json lists them",
    )
    parser.add_argument(
        "--output-socket",
        default="segmentation",
        metavar="NAME",
        help="the folder in /output/images that the labels go to; default: segmentation",
    )
    parser.add_argument(
        "--bake-model",
        action="store_true",
        help="put the model into the image; default: into model.tar.gz, to be uploaded apart",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace):
    """Exports the model and says what comes next."""
    require_nnunetv2()
    if args.out.exists():
        raise CommandError(f"--out {args.out}: exists already; name a folder that does not")
    model = read_model(args.model, args.folds, args.checkpoint)
    check_sockets(model, args.input_sockets)
    settings = {
        "folds": model.folds,
        "checkpoint": model.checkpoint,
        "mirroring": not args.no_mirroring,
        "everything_on_device": not args.not_on_device,
        "input_sockets": args.input_sockets,
        "output_socket": args.output_socket,
    }
    export(model, settings, args.bake_model, args.out)
    channels = ", ".join(f"{number}: {name}" for number, name in model.dataset["channel_names"].items())
    print(f"wrote {args.out}: {model.trainer}, {model.configuration}, fold {' '.join(model.folds)}")
    print(f"channels {channels}; sockets {', '.join(args.input_sockets) or 'in the order of inputs.json'}")
    print(f"try it:   {args.out / 'test_run.sh'} INPUT OUTPUT")
    print(f"go on:    {args.out / 'README.md'}")


def read_model(folder: Path, folds: list[str] | None, checkpoint: str) -> Model:
    """Reads what a model folder says of itself.

    Args:
        folder: as nnU-Net's training leaves it.
        folds: None for the numbered ones that have the checkpoint, or else the fold `all`.
        checkpoint: name of the checkpoints.

    Raises:
        CommandError: if something is missing, or the model cannot be exported.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    what = "MODEL must be a trained model's folder, such as nnUNet_results/Dataset004_X/TRAINER__PLANS__CONFIGURATION"
    plans, dataset = (read_json(folder / name, what) for name in ("plans.json", "dataset.json"))
    known = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}"))
    if not known:
        others = sorted({path.name for path in folder.glob("fold_*/*.pth")})
        raise CommandError(
            f"{folder}: no fold has {checkpoint}; checkpoints there: {', '.join(others) or 'none'}; choose with "
            "--checkpoint, or train first"
        )
    folds = list(dict.fromkeys(folds or [fold for fold in known if fold != "all"] or known))
    unknown = [fold for fold in folds if fold not in known]
    if unknown:
        raise CommandError(f"--folds {' '.join(unknown)}: {folder} has {checkpoint} for the folds {', '.join(known)}")
    read = read_checkpoint(folder / f"fold_{folds[0]}" / checkpoint)
    configuration = read["init_args"]["configuration"]
    needed = {
        "plans.json": (plans, ("dataset_name", "plans_name", "image_reader_writer", "configurations")),
        "dataset.json": (dataset, ("channel_names", "labels", "file_ending")),
    }
    for name, (content, keys) in needed.items():
        missing = [key for key in keys if key not in content]
        if missing:
            raise CommandError(f"{folder / name}: has no {', '.join(missing)}; {what}")
    if configuration not in plans["configurations"]:
        raise CommandError(f"{folder / 'plans.json'}: has no configuration {configuration}, which was trained; {what}")
    previous = PlansManager(plans).get_configuration(configuration).previous_stage_name
    if previous is not None:
        raise CommandError(
            f"{folder}: {configuration} continues the predictions of {previous}, which a container of one model has "
            "not; export a model that is not a cascade"
        )
    return Model(folder, checkpoint, folds, read["trainer_name"], configuration, plans, dataset)


def check_sockets(model: Model, sockets: list[str]):
    """Raises CommandError unless there is a socket for each channel."""
    channels = model.dataset["channel_names"]
    # One image can have the three channels of a colour.
    colours = model.plans["image_reader_writer"] == "NaturalImage2DIO"
    if sockets and not colours and len(sockets) != len(channels):
        names = ", ".join(f"{number}: {name}" for number, name in channels.items())
        raise CommandError(f"--input-sockets {' '.join(sockets)}: must be {len(channels)}, one per channel ({names})")


def own_trainers(name: str) -> Path | None:
    """The user's folder with a trainer; None if the trainer is nnU-Net's or this package's.

    Raises:
        CommandError: if there is no such trainer, or it would not be found in another nnU-Net.
    """
    from nnunet_deconver import trainers

    if name in trainers.__all__:
        return None
    found = find_trainer(name)
    if not isinstance(found, type):
        raise CommandError(
            f"the model's trainer {name} is not found ({found}); export {VARIABLE}=FOLDER, with the folder of its file"
        )
    module = Path(*found.__module__.split(".")).with_suffix(".py")
    for folder in external_folders():
        if (folder / module).is_file():
            return folder
    root = nnunetv2_folders()[0].parent
    nnunet = installed_distribution("nnunetv2")
    files = {Path(file.locate()) for file in nnunet.files or ()}
    # An editable clone travels as a whole.
    if root / module not in files and nnunet.read_text("direct_url.json") is None:
        raise CommandError(
            f"the model's trainer {name} is in {root / module}, which is not a file of nnU-Net's; move it to a folder "
            f"of its own and export {VARIABLE}=FOLDER"
        )
    return None


def export(model: Model, settings: dict, bake: bool, out: Path):
    """Writes the folder, or nothing.

    Args:
        model: to export.
        settings: for settings.json.
        bake: whether the model goes into the image.
        out: folder to make.

    Raises:
        CommandError: if it cannot be written.
    """
    trainers = own_trainers(model.trainer)
    temporary = out.with_name(f".{out.name}.unfinished")
    try:
        temporary.mkdir(parents=True)
        versions = write_requirements(temporary)
        folders = []
        if trainers is not None:
            folders.append("trainers")
            for path in trainers.rglob("*.py"):
                copy = temporary / "trainers" / path.relative_to(trainers)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        write_model(model, temporary / "model")
        if bake:
            folders.append("model")
        else:
            pack(temporary / "model", temporary / "model.tar.gz")
        (temporary / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
        write_files(model, versions, folders, temporary)
        temporary.rename(out)
    except OSError as error:
        raise CommandError(f"--out {out}: cannot write there ({error}); choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_model(model: Model, folder: Path):
    """Writes what prediction needs of a model, which is not the optimizer's state: half of a checkpoint and more."""
    import torch

    folder.mkdir()
    for name, content in (("plans.json", model.plans), ("dataset.json", model.dataset)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    for fold in model.folds:
        checkpoint = read_checkpoint(model.folder / f"fold_{fold}" / model.checkpoint)
        kept = {key: value for key, value in checkpoint.items() if key not in ("optimizer_state", "grad_scaler_state")}
        (folder / f"fold_{fold}").mkdir()
        torch.save(kept, folder / f"fold_{fold}" / model.checkpoint)


def pack(folder: Path, archive: Path):
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


def write_files(model: Model, versions: dict[str, str], folders: list[str], out: Path):
    """Writes the files of `nnunet_deconver.submission`.

    Args:
        model: to export.
        versions: of the packages, by name.
        folders: that are in the image beside inference.py.
        out: folder to write to.
    """
    import nnunet_deconver.submission

    values = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "folders": "".join(f"COPY --chown=algorithm:algorithm {name}/ {name}/\n" for name in folders),
        "dataset": model.plans["dataset_name"],
        "trainer": model.trainer,
        "plans": model.plans["plans_name"],
        "configuration": model.configuration,
        "folds": ", ".join(model.folds),
        "checkpoint": model.checkpoint,
        "channels": ", ".join(f"{number}: {name}" for number, name in model.dataset["channel_names"].items()),
        "nnunet_deconver": versions["nnunet-deconver"],
        "nnunetv2": versions["nnunetv2"],
        "torch": versions["torch"],
    }
    source = Path(nnunet_deconver.submission.__file__).parent
    for name in ("Dockerfile", "README.md"):
        (out / name).write_text(Template((source / name).read_text()).substitute(values))
    for name in ("inference.py", "test_run.sh"):
        shutil.copy(source / name, out / name)
    (out / "test_run.sh").chmod(0o755)  # installers of wheels may have lost it

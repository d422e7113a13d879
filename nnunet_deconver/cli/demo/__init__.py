"""`nnunet-deconver demo`: from data to a segmented image with nnU-Net's own commands, in one go.

Without `--dataset` the data is synthetic (see `phantom`), and two CPU cores do in minutes.
"""

import argparse
import copy
import csv
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

from nnunet_deconver.cli.errors import CommandError
from nnunet_deconver.cli.nnunet import require_nnunetv2
from nnunet_deconver.cli.status import find_trainer
from nnunet_deconver.cli.trainer_path import external_folders, shim_folder

TRAINER = "nnUNetTrainerDeconverDemo"
PHANTOM = "Dataset990_Phantom"
PHANTOM_TRAINING, PHANTOM_HELD_OUT = 30, 8
FEWEST_CASES = 5
# Taken from the training cases. nnU-Net watches it while it trains and segments it afterwards, in all mirrorings: one,
# because that takes time, and the held-out cases are the ones that count.
VALIDATION_CASES = 1

# What a plan is cut down to where there is no GPU; patch and batch by number of axes.
SMALL_PLANS = "nnUNetPlansSmall"
SMALL_PATCH = {2: 128, 3: 32}
SMALL_BATCH = {2: 4, 3: 2}
SMALL_STAGES = 4
SMALL_FEATURES = 16  # of the first stage, doubled from each to the next

# Everything that is ever written into the output folder, and so all that is ever removed from it.
MARKER = ".nnunet-deconver-demo"
LOG, PICTURE, TABLE, MODEL = "nnunet.log", "demo.png", "dice.csv", "model"
INTERMEDIATE = ("raw", "preprocessed", "results", "predictions")
OUTPUTS = (*INTERMEDIATE, LOG, PICTURE, TABLE, MODEL, MARKER)


def add_parser(subparsers: argparse._SubParsersAction):
    """Adds the subcommand `demo`."""
    parser = subparsers.add_parser(
        "demo",
        help="train, predict and show the result, in minutes on a CPU",
        description="Makes a small synthetic dataset, or takes yours; runs nnU-Net's commands on it with a trainer of "
        "this package; measures and draws the result on cases that were held out.",
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        metavar="FOLDER",
        help="a raw dataset of nnU-Net (DatasetXXX_NAME), which is only read; default: a synthetic one",
    )
    parser.add_argument(
        "--held-out",
        type=int,
        metavar="N",
        help="number of cases of --dataset to measure with instead of training; default: a fifth, 20 at most",
    )
    parser.add_argument("--trainer", default=TRAINER, metavar="NAME", help="default: %(default)s")
    parser.add_argument("--device", metavar="cpu|cuda", help="default: cuda if there is one")
    parser.add_argument(
        "--out", type=Path, default=Path("demo_output"), metavar="FOLDER", help="default: ./%(default)s"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="write into --out even if it holds other things than a former demo"
    )
    parser.add_argument(
        "--keep", action="store_true", help=f"keep the intermediate folders ({', '.join(INTERMEDIATE)})"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace):
    """Runs the demo."""
    start = time.monotonic()
    require_nnunetv2()
    if args.dataset is None and args.held_out is not None:
        raise CommandError(f"--held-out {args.held_out} goes with --dataset; leave it out, or name a dataset")
    dataset = read_dataset(args.dataset, args.held_out) if args.dataset is not None else None
    device = choose_device(args.device)
    check_trainer(args.trainer)
    check_output(args.out, args.overwrite, args.dataset)

    out = args.out
    prepare_output(out)
    raw = out / "raw" / (dataset.name if dataset else PHANTOM)
    if dataset:
        dataset.link(raw)
    else:
        from nnunet_deconver.cli.demo import phantom

        phantom.write_dataset(raw, training=PHANTOM_TRAINING, held_out=PHANTOM_HELD_OUT)
    data = RawData(raw)
    kind = "" if dataset else ", synthetic"
    print(f"Data: {data.name}{kind}, {len(data.cases('Tr'))} cases to train with and {len(data.cases('Ts'))} held out.")

    model = train_and_predict(data, out, args.trainer, device)
    dice = read_dice(out / "predictions" / "summary.json", data)
    baseline = best_threshold_dice(data)
    write_table(out / TABLE, dice, baseline)
    (*_, (_, ours, threshold)) = table_rows(dice, baseline)
    title = (
        f"{args.trainer}: mean Dice {ours:.2f} on {len(data.cases('Ts'))} held-out cases; thresholds: {threshold:.2f}"
    )
    draw_cases(data, out / "predictions", dice, out / PICTURE, title)

    if not args.keep:
        shutil.move(model, out / MODEL)
        model = out / MODEL
        for name in INTERMEDIATE:
            shutil.rmtree(out / name)
    print(f"\n{format_table(dice, baseline)}\n")
    print(f"Picture: {out / PICTURE}\nTable:   {out / TABLE}\nLog:     {out / LOG}\nModel:   {model}")
    print(f"Took {_minutes(time.monotonic() - start)}.")


# Checks: all of them before the first byte is written.


@dataclass
class Dataset:
    """A raw dataset of the user's.

    Attributes:
        name: Dataset<three digits>_<name>.
        description: its dataset.json.
        training: case to the files of its channels and its label.
        held_out: likewise.
    """

    name: str
    description: dict
    training: dict[str, tuple[list[Path], Path]]
    held_out: dict[str, tuple[list[Path], Path]]

    def link(self, folder: Path):
        """Makes a raw dataset of links, or copies where the system has none, with the held-out cases as test cases."""
        ending = self.description["file_ending"]
        for split, cases in (("Tr", self.training), ("Ts", self.held_out)):
            images_folder, labels_folder = folder / f"images{split}", folder / f"labels{split}"
            images_folder.mkdir(parents=True)
            labels_folder.mkdir()
            for case, (images, label) in cases.items():
                for channel, image in enumerate(images):
                    _link(image, images_folder / f"{case}_{channel:04d}{ending}")
                _link(label, labels_folder / f"{case}{ending}")
                # Where nnU-Net looks for the spacing of formats that have none, such as tif.
                first = images[0].name.removesuffix(ending).removesuffix("_0000")
                for source, target in (
                    (images[0].with_name(f"{first}.json"), images_folder),
                    (label.with_name(f"{label.name.removesuffix(ending)}.json"), labels_folder),
                ):
                    if source.is_file():
                        _link(source, target / f"{case}.json")
        # "dataset" lists files elsewhere; the links have nnU-Net's usual names.
        description = {key: value for key, value in self.description.items() if key != "dataset"}
        description["numTraining"] = len(self.training)
        (folder / "dataset.json").write_text(json.dumps(description, indent=2))


def _link(source: Path, target: Path):
    try:
        target.symlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def read_dataset(folder: Path, held_out: int | None = None) -> Dataset:
    """Reads and checks a raw dataset's description and list of files, and draws the cases to hold out.

    Args:
        folder: the dataset's folder.
        held_out: number of cases to hold out; None for a fifth, 20 at most.

    Raises:
        CommandError: if it is no dataset that the demo can use.
    """
    what = f"--dataset {folder}"
    if not folder.is_dir():
        raise CommandError(f"{what}: no such folder; it must be a raw dataset of nnU-Net, DatasetXXX_NAME")
    folder = folder.resolve()
    if not re.fullmatch(r"Dataset\d{3}_.+", folder.name):
        raise CommandError(
            f"{what}: the folder must be named Dataset, three digits, an underscore and a name, as Dataset004_Heart; "
            f"rename or link {folder.name}"
        )
    path = folder / "dataset.json"
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise CommandError(
            f"{what}: it has no dataset.json; see nnU-Net's documentation/dataset_format.md for how to write one"
        ) from None
    except (OSError, ValueError) as error:
        raise CommandError(f"{what}: cannot read {path} ({error}); mend it") from error
    missing = [key for key in ("channel_names", "labels", "file_ending") if key not in description]
    if missing:
        raise CommandError(f"{what}: {path} lacks {', '.join(missing)}; add what nnU-Net's dataset format asks for")
    try:
        _label_manager(description)
    except Exception as error:
        raise CommandError(f"{what}: nnU-Net refuses the labels of {path} ({error}); mend them") from error

    cases = _cases(folder, description)
    for case, (images, label) in cases.items():
        for file in (*images, label):
            if not file.is_file():
                raise CommandError(f"{what}: case {case} lacks the file {file}; add it, or remove the case")
    if len(cases) < FEWEST_CASES:
        raise CommandError(
            f"{what}: found {len(cases)} cases in {folder / 'imagesTr'} that end with _0000"
            f"{description['file_ending']}; the demo needs {FEWEST_CASES} at least"
        )
    try:
        _reader(description, next(iter(cases.values()))[0][0])
    except Exception as error:
        raise CommandError(f"{what}: nnU-Net cannot read its images ({error}); see file_ending in {path}") from error
    most = len(cases) - FEWEST_CASES + 1
    if held_out is None:
        held_out = max(1, min(20, len(cases) // 5))
    elif not 1 <= held_out <= most:
        raise CommandError(f"--held-out {held_out}: must be from 1 to {most} for the {len(cases)} cases of {folder}")

    import numpy as np

    drawn = set(np.random.default_rng(0).permutation(sorted(cases))[:held_out])
    training, test = ({c: files for c, files in cases.items() if (c in drawn) is chosen} for chosen in (False, True))
    return Dataset(folder.name, description, training, test)


def _cases(folder: Path, description: dict) -> dict[str, tuple[list[Path], Path]]:
    ending = description["file_ending"]
    if "dataset" in description:
        from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

        listed = get_filenames_of_train_images_and_targets(str(folder), copy.deepcopy(description))
        return {
            case: ([Path(image) for image in files["images"]], Path(files["label"])) for case, files in listed.items()
        }
    first = f"_0000{ending}"
    names = sorted(path.name.removesuffix(first) for path in (folder / "imagesTr").glob(f"*{first}"))
    # One file may hold all channels, as an RGB png does.
    channels = len(description["channel_names"]) if any((folder / "imagesTr").glob(f"*_0001{ending}")) else 1
    return {
        name: (
            [folder / "imagesTr" / f"{name}_{channel:04d}{ending}" for channel in range(channels)],
            folder / "labelsTr" / f"{name}{ending}",
        )
        for name in names
    }


def _reader(description: dict, example: Path):
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it tells of each one it tries
        return determine_reader_writer_from_dataset_json(description, str(example))()


def _label_manager(description: dict):
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    return LabelManager(description["labels"], description.get("regions_class_order"))


def choose_device(requested: str | None) -> str:
    """The device to train on, "cuda" or "cpu".

    Args:
        requested: by the user; None for the best there is.

    Raises:
        CommandError: if it is unknown or missing here.
    """
    import torch

    cuda = torch.cuda.is_available()
    if requested is None:
        return "cuda" if cuda else "cpu"
    if requested not in ("cpu", "cuda"):
        raise CommandError(f"--device {requested}: must be cpu or cuda")
    if requested == "cuda" and not cuda:
        raise CommandError("--device cuda: PyTorch finds no CUDA device here; take cpu, or leave the option out")
    return requested


def check_trainer(name: str):
    """Looks for a trainer of this package, or any that nnU-Net finds.

    Raises:
        CommandError: if there is none of that name.
    """
    from nnunet_deconver import trainers

    if name not in trainers.__all__ and isinstance(find_trainer(name), Exception):
        raise CommandError(
            f"--trainer {name}: neither this package nor nnU-Net has it; `nnunet-deconver list` shows this package's"
        )


def check_output(out: Path, overwrite: bool, dataset: Path | None):
    """Refuses an output folder in which something of the user's could be lost.

    Raises:
        CommandError: if it is one.
    """
    if out.exists() and not out.is_dir():
        raise CommandError(f"--out {out}: is a file; name a folder")
    if dataset is not None:
        inner, outer = out.resolve(), dataset.resolve()
        if inner == outer or outer in inner.parents or inner in outer.parents:
            raise CommandError(f"--out {out}: lies in the folder of --dataset or around it; choose one elsewhere")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).exists() and not overwrite:
        raise CommandError(
            f"--out {out}: holds files that are not a former demo's; choose another folder, or add --overwrite, which "
            f"replaces {', '.join(OUTPUTS[:-1])} in it and leaves the rest"
        )


def prepare_output(out: Path):
    """Makes the output folder, without anything of a former demo."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in (out / name for name in OUTPUTS):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        (out / MARKER).write_text("Made by `nnunet-deconver demo`, which replaces its files here without asking.\n")
    except OSError as error:
        raise CommandError(f"--out {out}: cannot write there ({error}); choose another folder") from error


# The data as nnU-Net reads it.


class RawData:
    """A raw dataset with test labels.

    Args:
        folder: its folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.name = folder.name
        self.number = str(int(folder.name[7:10]))
        self.description = json.loads((folder / "dataset.json").read_text())
        self.ending = self.description["file_ending"]
        manager = _label_manager(self.description)
        keys = manager.foreground_regions if manager.has_regions else manager.foreground_labels
        names = {_label_key(value): name for name, value in self.description["labels"].items()}
        # Name to the label, or the labels of the region, as nnU-Net's summaries call it.
        self.classes = {names[_label_key(key)]: key for key in keys}
        self.ignore = manager.ignore_label
        example = self.images("Tr", self.cases("Tr")[0])[0]
        self.io = _reader(self.description, example)
        # nnU-Net plans no 3D configuration for it.
        self.is_2d = 1 in self.io.read_images((example,))[0].shape[1:]

    def cases(self, split: str) -> list[str]:
        """The names of the cases of a split, "Tr" or "Ts"."""
        labels = (self.folder / f"labels{split}").glob(f"*{self.ending}")
        return sorted(path.name.removesuffix(self.ending) for path in labels)

    def images(self, split: str, case: str) -> list[str]:
        """The files of a case's channels."""
        channels = range(len(self.description["channel_names"]))
        files = [self.folder / f"images{split}" / f"{case}_{channel:04d}{self.ending}" for channel in channels]
        return [str(file) for file in files if file.exists()]

    def read_held_out(self, case: str):
        """Image (channels, z, y, x), truth (z, y, x) and spacing (z, y, x) of a held-out case."""
        image, properties = self.io.read_images(self.images("Ts", case))
        return image, self.read_labels(self.folder / "labelsTs" / f"{case}{self.ending}"), properties["spacing"]

    def read_labels(self, path: Path):
        """Labels (z, y, x)."""
        return self.io.read_seg(str(path))[0][0].astype(int)


def _label_key(value) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, list | tuple) else (int(value),)


# nnU-Net's commands.


def train_and_predict(data: RawData, out: Path, trainer: str, device: str) -> Path:
    """Plans, preprocesses, trains, predicts the held-out cases and evaluates the prediction.

    Args:
        data: in `out`/raw.
        out: the demo's folder.
        trainer: name of the nnU-Net trainer.
        device: "cpu" or "cuda".

    Returns:
        The trained model's folder. The predictions and their summary.json are in `out`/predictions.

    Raises:
        CommandError: if a command fails.
    """
    variables = {
        "nnUNet_raw": out.resolve() / "raw",
        "nnUNet_preprocessed": out.resolve() / "preprocessed",
        "nnUNet_results": out.resolve() / "results",
        "nnUNet_extTrainer": os.pathsep.join(map(str, (shim_folder(), *external_folders()))),
        "nnUNet_n_proc_DA": 2 if device == "cpu" else min(8, os.cpu_count() or 1),
        "nnUNet_def_n_proc": 2,
        "nnUNet_compile": "f",  # takes minutes itself, more than it saves here
        "nnUNet_wandb_enabled": 0,
        # Beside other work on the same cores, threads that spin while they wait make a training step of the synthetic
        # data take 40 s and more instead of 1.2 s (two cores beside another training, torch 2.15).
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(str(value))}")
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}, "PYTHONUNBUFFERED": "1"}

    def nnunet(*command, on_line=None):
        run_command([str(word) for word in command], environment, out / LOG, on_line)

    configuration = "2d" if data.is_2d else "3d_fullres"
    nnunet("nnUNetv2_plan_and_preprocess", "-d", data.number, "-c", configuration, "-npfp", 2, "-np", 2)
    preprocessed = out / "preprocessed" / data.name
    plans = choose_plans(preprocessed, configuration, device)
    cases = data.cases("Tr")
    split = {"train": cases[:-VALIDATION_CASES], "val": cases[-VALIDATION_CASES:]}
    (preprocessed / "splits_final.json").write_text(json.dumps([split], indent=2))

    model = out / "results" / data.name / f"{trainer}__{plans}__{configuration}"
    chosen = ("-tr", trainer, "-p", plans, "-device", device)
    with TrainingBar(model / "fold_0" / "debug.json") as bar:
        nnunet("nnUNetv2_train", data.number, configuration, 0, *chosen, on_line=bar)
    # Without a GPU, mirroring would take 8 times as long, and worker processes start longer than these cases last.
    short = ("--disable_tta", "-npp", 0, "-nps", 0) if device == "cpu" else ()
    where = ("-i", data.folder / "imagesTs", "-o", out / "predictions")
    nnunet("nnUNetv2_predict", "-d", data.number, "-c", configuration, "-f", 0, *where, *chosen, *short)
    described = ("-djfile", model / "dataset.json", "-pfile", model / "plans.json")
    nnunet("nnUNetv2_evaluate_folder", data.folder / "labelsTs", out / "predictions", *described)
    return model


def run_command(
    command: list[str], environment: dict[str, str], log: Path, on_line: Callable[[str], None] | None = None
):
    """Runs a command of nnU-Net's, with its output in a log.

    Args:
        command: its name, as installed beside this Python, and arguments.
        environment: its variables.
        log: file to append to.
        on_line: called with each line of output.

    Raises:
        CommandError: if it is not installed or fails.
    """
    print(f"$ {shlex.join(command)}", flush=True)
    # Beside this Python first: a virtual environment need not be activated.
    folders = (os.path.dirname(sys.executable), sysconfig.get_path("scripts"), os.environ.get("PATH", ""))
    program = shutil.which(command[0], path=os.pathsep.join(folders))
    if program is None:
        raise CommandError(f"{command[0]} is not installed beside {sys.executable}; reinstall nnunetv2")
    start, last_lines = time.monotonic(), deque(maxlen=15)
    with log.open("a", encoding="utf-8") as sink:
        sink.write(f"$ {shlex.join(command)}\n")
        sink.flush()
        beginning = log.stat().st_size
        # A file, not a pipe: workers that outlive their parent would hold a pipe open, and the wait would never end.
        process = subprocess.Popen(
            [program, *command[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with _ending_with_this_block(process), log.open(encoding="utf-8", errors="replace") as output:
        output.seek(beginning)
        unfinished, running = "", True
        while running:
            running = process.poll() is None
            *lines, unfinished = (unfinished + output.read()).split("\n")
            for line in lines:
                if line.strip():
                    last_lines.append(line)
                if on_line:
                    on_line(line)
            if running:
                time.sleep(0.1)
    if process.returncode:
        ending = "\n  ".join((*last_lines, unfinished))
        raise CommandError(
            f"{command[0]} failed with exit code {process.returncode}. The end of its log:\n  {ending}\n"
            f"The whole log: {log}"
        )
    print(f"  {_minutes(time.monotonic() - start)}", flush=True)


@contextmanager
def _ending_with_this_block(process: subprocess.Popen):
    """Ends the process group that the process leads, whichever way the block is left: Ctrl-C and kill included."""

    def terminated(*_):
        sys.exit(128 + signal.SIGTERM)

    handler = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # none is left
            os.killpg(process.pid, signal.SIGTERM)
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGKILL)
        signal.signal(signal.SIGTERM, handler)


class TrainingBar:
    """A progress bar over the epochs of nnU-Net's training, fed with the lines it prints.

    Args:
        debug_file: the file in which nnU-Net writes the training's settings down before the first epoch.
    """

    def __init__(self, debug_file: Path):
        self.debug_file = debug_file
        self.bar = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def __call__(self, line: str):
        """Moves on with a line of nnU-Net's output."""
        from tqdm import tqdm

        if self.bar is None and re.search(r": Epoch \d+$", line):
            # Where nobody looks on, a bar is lines in a file.
            self.bar = tqdm(
                total=self._epochs(), unit="epoch", mininterval=0.1 if sys.stderr.isatty() else 20, miniters=1
            )
        elif self.bar is not None and "Pseudo dice" in line:
            values = [float(value) for value in re.findall(r"\d\.\d+", line.partition("Pseudo dice")[2])]
            if values:
                self.bar.set_postfix_str(f"validation patches: Dice {sum(values) / len(values):.2f}", refresh=False)
        elif self.bar is not None and "Epoch time" in line:
            self.bar.update()
        elif self.bar is not None and "Training done" in line:
            self.bar.close()
            print("  trained; nnU-Net segments its validation case", flush=True)

    def _epochs(self) -> int | None:
        try:
            return int(json.loads(self.debug_file.read_text())["num_epochs"])
        except (OSError, ValueError, KeyError):
            return None


def choose_plans(preprocessed: Path, configuration: str, device: str) -> str:
    """The plans to train with: nnU-Net's own on a GPU, else smaller ones, written beside them. Says so.

    Args:
        preprocessed: the dataset's folder there.
        configuration: as in the plans.
        device: "cpu" or "cuda".

    Returns:
        Their name.
    """
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    default = _describe(plans, configuration)
    if device != "cpu":
        print(f"Plan: nnU-Net's own, for the GPU: {default}.")
        return "nnUNetPlans"
    small = shrink_plans(plans, configuration)
    (preprocessed / f"{SMALL_PLANS}.json").write_text(json.dumps(small, indent=2))
    print(f"Plan: {_describe(small, configuration)}, so that a CPU needs minutes; nnU-Net's own: {default}.")
    return SMALL_PLANS


def _describe(plans: dict, configuration: str) -> str:
    plan = plans["configurations"][configuration]
    network = plan["architecture"]["arch_kwargs"]
    patch, features = "x".join(map(str, plan["patch_size"])), network["features_per_stage"]
    return f"patch {patch}, batch {plan['batch_size']}, {network['n_stages']} stages of {features[0]}-{features[-1]}"


def shrink_plans(plans: dict, configuration: str) -> dict:
    """Plans that a CPU trains with in minutes, on the same preprocessed data.

    Args:
        plans: of nnU-Net's planner, for PlainConvUNet or ResidualEncoderUNet.
        configuration: the one to keep.

    Returns:
        Plans with fewer stages and features, and with a small patch that the strides divide and a batch to match.
    """
    plan = copy.deepcopy(plans["configurations"][configuration])
    network = plan["architecture"]["arch_kwargs"]
    stages = network["n_stages"] = min(network["n_stages"], SMALL_STAGES)
    for name, value in network.items():
        if name.endswith("_decoder"):  # lowest resolution first
            network[name] = value[len(value) - (stages - 1) :]
        elif isinstance(value, list):
            network[name] = value[:stages]
    network["features_per_stage"] = [
        min(features, SMALL_FEATURES * 2**stage) for stage, features in enumerate(network["features_per_stage"])
    ]
    axes = len(plan["patch_size"])
    for axis in range(axes):
        divisor = math.prod(stride[axis] for stride in network["strides"])
        size = min(plan["patch_size"][axis], SMALL_PATCH[axes])
        plan["patch_size"][axis] = max(1, size // divisor) * divisor
    plan["batch_size"] = SMALL_BATCH[axes]
    return {**plans, "plans_name": SMALL_PLANS, "configurations": {configuration: plan}}


# The result.

Dice = dict[str, dict[str, float]]  # class to case to Dice; NaN where neither truth nor prediction has the class


def read_dice(summary: Path, data: RawData) -> Dice:
    """Dice of the held-out cases, from nnU-Net's summary.json."""
    cases = json.loads(summary.read_text())["metric_per_case"]
    return {
        name: {
            Path(case["prediction_file"]).name.removesuffix(data.ending): case["metrics"][str(key)]["Dice"]
            for case in cases
        }
        for name, key in data.classes.items()
    }


def best_threshold_dice(data: RawData, bins: int = 256) -> Dice:
    """Dice that thresholds would reach on the held-out cases: for each class the interval of intensities that is best.

    Sought with these cases' truth at hand, in every channel, as it is and standardised per case, and therefore an upper
    bound of what a threshold chosen without the truth would reach.

    Args:
        data: whose held-out cases are measured.
        bins: intervals begin and end at this many quantiles of the intensities.
    """
    import numpy as np

    cases = data.cases("Ts")
    rng = np.random.default_rng(0)
    best = dict.fromkeys(data.classes, np.full(len(cases), np.nan))

    def intensities(case, channel, standardise):
        image, truth, _ = data.read_held_out(case)
        values, counted = image[channel], np.ones(truth.shape, bool) if data.ignore is None else truth != data.ignore
        if standardise:
            values = (values - values.mean()) / max(values.std(), 1e-8)
        return values[counted], truth[counted]

    channels = range(len(data.read_held_out(cases[0])[0]))
    for kind in ((channel, standardise) for channel in channels for standardise in (False, True)):
        sample = [rng.choice(intensities(case, *kind)[0], 20_000) for case in cases]
        edges = np.quantile(np.concatenate(sample), np.linspace(0, 1, bins + 1)[1:-1])
        # Voxels below each edge, first of all, then of each class.
        below = {name: np.zeros((len(cases), bins + 1)) for name in (None, *data.classes)}
        for i, case in enumerate(cases):
            values, truth = intensities(case, *kind)
            positions = np.searchsorted(edges, values, side="right")
            for name, counts in below.items():
                chosen = positions if name is None else positions[np.isin(truth, data.classes[name])]
                counts[i, 1:] = np.bincount(chosen, minlength=bins).cumsum()
        for name in data.classes:
            dice = _interval_dice(below[None], below[name])
            if not mean_dice(best[name]) >= mean_dice(dice):
                best[name] = dice
    return {name: dict(zip(cases, map(float, dice), strict=True)) for name, dice in best.items()}


def _interval_dice(below, hits_below):
    """Dice per case of the interval with the best mean; both arguments are (cases, edges), see above."""
    import numpy as np

    predicted = below[:, None, :] - below[:, :, None]  # from the second axis' edge to the third's
    hits = hits_below[:, None, :] - hits_below[:, :, None]
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # means of nothing but NaN
        dice = np.where(predicted < 0, np.nan, 2 * hits / (predicted + hits_below[:, -1:, None]))
        mean = np.nanmean(dice, axis=0)
    if np.isnan(mean).all():
        return dice[:, 0, -1]
    return dice[(slice(None), *np.unravel_index(np.nanargmax(mean), mean.shape))]


def mean_dice(values: Iterable[float]) -> float:
    """The mean of those that are no NaN; NaN if all are."""
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan


def table_rows(dice: Dice, baseline: Dice) -> list[tuple[str, float, float]]:
    """Class, Dice and the best threshold's Dice; the last row has their means."""
    rows = [(name, *(mean_dice(results[name].values()) for results in (dice, baseline))) for name in dice]
    return [*rows, ("mean", mean_dice(row[1] for row in rows), mean_dice(row[2] for row in rows))]


def format_table(dice: Dice, baseline: Dice) -> str:
    """The table of Dice to print."""
    rows = table_rows(dice, baseline)
    width = max(len(row[0]) for row in rows)
    lines = [f"{'Dice':<{width}}  prediction  best threshold"]
    lines += [f"{name:<{width}}  {ours:>10.3f}  {threshold:>14.3f}" for name, ours, threshold in rows]
    lines.insert(-1, "-" * len(lines[0]))
    return "\n".join(lines)


def write_table(path: Path, dice: Dice, baseline: Dice):
    """Writes the table of Dice as CSV, the prediction's Dice of each case included."""
    cases = list(next(iter(dice.values())))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "prediction", "best threshold", *cases])
        for name, *means in table_rows(dice, baseline):
            each = [dice[name][case] if name in dice else case_dice(dice, case) for case in cases]
            writer.writerow([name, *(f"{value:.4f}" for value in (*means, *each))])


def case_dice(dice: Dice, case: str) -> float:
    """The mean over classes for one case."""
    return mean_dice(results[case] for results in dice.values())


def draw_cases(data: RawData, predictions: Path, dice: Dice, path: Path, title: str):
    """Draws the best, the median and the worst held-out case.

    Args:
        data: whose held-out cases these are.
        predictions: nnU-Net's, a folder.
        dice: of the predictions.
        path: file to write.
        title: stands on top of the picture.
    """
    from nnunet_deconver.evaluation import panels

    def row(rank: str, case: str) -> panels.Case:
        image, truth, spacing = data.read_held_out(case)
        labels = data.read_labels(predictions / f"{case}{data.ending}")
        prediction = panels.Prediction(labels, case_dice(dice, case))
        return panels.Case(f"{rank}: {case}", image, truth, {"prediction": prediction}, spacing)

    chosen = panels.best_median_worst({case: case_dice(dice, case) for case in data.cases("Ts")})
    panels.draw_panels(
        [row(rank, case) for case, rank in chosen.items()],
        panels.label_names({name: _label_key(key) for name, key in data.classes.items()}),
        path.with_suffix(""),
        ignore=data.ignore,
        title=title,
        segmentations=True,
        formats=[path.suffix[1:]],
    )


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"

"""Segments what a container is given: the program of a submission that `nnunet-deconver export-submission` made.

Reads a job of grand-challenge (inputs.json and the folders of its sockets) or a folder of images, and writes
compressed .mha files where the images are in the world. One case at a time, in this process; no variable needs to be
set and nothing is downloaded. settings.json, beside this file, says how to predict; model/, if it is there too, is
the model.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

HERE = Path(__file__).resolve().parent
ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd", ".tif", ".tiff", ".png", ".bmp")


class UnusableError(Exception):
    """Input or a model that cannot be used; the message names what, and what is needed."""


@dataclass
class Case:
    """Images to be segmented together."""

    name: str
    images: list[tuple[int, Path]]  # by channel
    output: Path


def main(arguments: list[str] | None = None) -> int:
    """Segments all cases.

    Args:
        arguments: of the command line; None for those of this process.

    Returns:
        0 if every case was segmented, else 1.
    """
    parser = argparse.ArgumentParser(description="Segments a job of grand-challenge, or a folder of images.")
    parser.add_argument("--input", type=Path, default=Path("/input"), metavar="FOLDER", help="default: /input")
    parser.add_argument("--output", type=Path, default=Path("/output"), metavar="FOLDER", help="default: /output")
    baked = HERE / "model"
    model = baked if baked.is_dir() else Path("/opt/ml/model")
    parser.add_argument("--model", type=Path, default=model, metavar="FOLDER", help=f"default: {model}")
    options = parser.parse_args(arguments)
    try:
        settings = read_json(HERE / "settings.json")
        predictor = load_predictor(options.model, settings)
        cases = find_cases(options.input, options.output, settings, len(predictor.dataset_json["channel_names"]))
    except UnusableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    failed = [case.name for case in cases if not segment(case, predictor)]
    print(f"{len(cases) - len(failed)} of {len(cases)} cases segmented")
    if failed:
        print(f"error: not segmented: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def read_json(path: Path):
    """A JSON file; raises UnusableError if there is none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UnusableError(f"{path}: cannot be read ({error})") from error


def load_predictor(model: Path, settings: dict):
    """nnU-Net's predictor with all folds of the model.

    Args:
        model: folder with plans.json, dataset.json and a folder per fold.
        settings: of settings.json.

    Raises:
        UnusableError: if a file of the model is missing.
    """
    checkpoints = [f"fold_{fold}/{settings['checkpoint']}" for fold in settings["folds"]]
    missing = [name for name in ("plans.json", "dataset.json", *checkpoints) if not (model / name).is_file()]
    if missing:
        raise UnusableError(f"model {model}: has no {', '.join(missing)}; unpack model.tar.gz there")
    # nnU-Net looks for trainers in its own package and in these folders, and reads the variable when it is imported.
    import nnunet_deconver.shim

    shim = Path(nnunet_deconver.shim.__file__).parent
    os.environ["nnUNet_extTrainer"] = os.pathsep.join(map(str, (shim, HERE / "trainers")))
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"device: {torch.cuda.get_device_name() if device.type == 'cuda' else 'cpu'}")
    predictor = nnUNetPredictor(
        use_mirroring=settings["mirroring"],
        perform_everything_on_device=settings["everything_on_device"],
        device=device,
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(model), settings["folds"], settings["checkpoint"])
    return predictor


def find_cases(inputs: Path, output: Path, settings: dict, channels: int) -> list[Case]:
    """The cases in a folder; a job of grand-challenge is one.

    Args:
        inputs: folder with inputs.json, or with images.
        output: folder for what will be segmented.
        settings: of settings.json.
        channels: how many the model takes.

    Raises:
        UnusableError: if there are none, or a job's sockets are not as they must be.
    """
    if (inputs / "inputs.json").is_file():
        return [job(inputs, output, settings)]
    if not inputs.is_dir():
        raise UnusableError(f"input {inputs}: no such folder")
    paths = images_in(inputs)
    named = {path: match for path in paths if (match := re.fullmatch(r"(.+)_(\d{4})", stem(path)))}
    named = {path: match for path, match in named.items() if int(match[2]) < channels}
    # Images of one channel may have names of their own, and these may end in four digits.
    if channels == 1 and len(named) < len(paths):
        named = {}
    cases: dict[str, Case] = {}
    for path in paths:
        name, channel = (named[path][1], int(named[path][2])) if path in named else (stem(path), 0)
        cases.setdefault(name, Case(name, [], output / f"{name}.mha")).images.append((channel, path))
    if not cases:
        raise UnusableError(f"input {inputs}: neither inputs.json nor an image ({' '.join(ENDINGS)}) is there")
    return list(cases.values())


def job(inputs: Path, output: Path, settings: dict) -> Case:
    """The case of a job of grand-challenge; raises UnusableError unless each socket has its image."""
    path = inputs / "inputs.json"
    try:
        # What is a socket now was called an interface before.
        sockets = [entry["socket"] if "socket" in entry else entry["interface"] for entry in read_json(path)]
        folders = {socket["slug"]: socket["relative_path"] for socket in sockets}
    except (KeyError, TypeError) as error:
        raise UnusableError(f"{path}: must list sockets, each with slug and relative_path ({error!r})") from error
    folders = {slug: inputs / folder for slug, folder in folders.items() if folder.startswith("images/")}
    chosen = settings["input_sockets"] or list(folders)
    missing = [slug for slug in chosen if slug not in folders]
    if missing or not chosen:
        raise UnusableError(
            f"{path}: has no image socket {', '.join(missing)}; it has: {', '.join(folders) or 'none'}; "
            "input_sockets in settings.json says which the model takes"
        )
    images = []
    for channel, slug in enumerate(chosen):
        found = images_in(folders[slug]) if folders[slug].is_dir() else []
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise UnusableError(f"socket {slug}: needs one image in {folders[slug]}, has {len(found)}: {names}")
        images.append((channel, found[0]))
    name = stem(images[0][1])
    return Case(name, images, output / "images" / settings["output_socket"] / f"{name}.mha")


def ending(path: Path) -> str:
    """How the name of an image ends; empty for other files."""
    return next((known for known in ENDINGS if path.name.endswith(known)), "")


def stem(path: Path) -> str:
    """The name of an image without its ending."""
    return path.name[: -len(ending(path))]


def images_in(folder: Path) -> list[Path]:
    """The images in a folder, by name; hidden files are none."""
    paths = (path for path in folder.iterdir() if ending(path) and not path.name.startswith("."))
    return sorted(path for path in paths if path.is_file())


def segment(case: Case, predictor) -> bool:
    """Segments a case and writes its labels, or says on stderr why it cannot."""
    print(f"{case.name}: {', '.join(f'channel {channel}: {path}' for channel, path in case.images)}", flush=True)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            images = read_images(case, predictor)
            files = for_nnunet(case, images, predictor, Path(scratch))
            reference = images[0]
            del images
            predict(predictor, files, f"{scratch}/labels")
            labels = sitk.ReadImage(f"{scratch}/labels{predictor.dataset_json['file_ending']}")
        write(labels, reference, case.output)
    # Whatever is wrong with a case must not cost the others.
    except Exception as error:
        if not isinstance(error, UnusableError):
            traceback.print_exc()
        print(f"error: {case.name}: {error or type(error).__name__}", file=sys.stderr, flush=True)
        return False
    print(f"{case.name}: wrote {case.output}", flush=True)
    return True


def read_images(case: Case, predictor) -> list[sitk.Image]:
    """The images of a case by channel.

    Raises:
        UnusableError: if one cannot be read, or they are not what the model takes.
    """
    images = []
    for _, path in case.images:
        try:
            images.append(sitk.ReadImage(str(path)))
        except RuntimeError as error:
            raise UnusableError(f"{path}: cannot be read as an image ({error})") from error

    reader = predictor.plans_manager.image_reader_writer_class.__name__
    dimensions = {"NaturalImage2DIO": (2,), "SimpleITKIO": (2, 3)}.get(reader, (3,))
    if len(predictor.configuration_manager.patch_size) == 3:
        dimensions = (3,)
    reference = images[0]
    for (_, path), image in zip(case.images, images, strict=True):
        if image.GetDimension() not in dimensions:
            allowed = " or ".join(f"{dimension}D" for dimension in dimensions)
            raise UnusableError(f"{path}: is {image.GetDimension()}D; the model takes {allowed} images")
        # Colours are channels to one of nnU-Net's readers, and not known to the others.
        if image.GetNumberOfComponentsPerPixel() > 1 and reader != "NaturalImage2DIO":
            raise UnusableError(f"{path}: has {image.GetNumberOfComponentsPerPixel()} values per voxel, must have one")
        if image.GetSize() != reference.GetSize() or not np.allclose(image.GetSpacing(), reference.GetSpacing()):
            raise UnusableError(
                f"{path}: has size {image.GetSize()} and spacing {image.GetSpacing()}, but {case.images[0][1].name} "
                f"has size {reference.GetSize()} and spacing {reference.GetSpacing()}; they must be the same"
            )
    names = predictor.dataset_json["channel_names"]
    in_order = [channel for channel, _ in case.images] == list(range(len(images)))
    if not in_order or sum(image.GetNumberOfComponentsPerPixel() for image in images) != len(names):
        needed = ", ".join(f"{channel}: {name}" for channel, name in names.items())
        found = ", ".join(f"{channel}: {path.name}" for channel, path in case.images)
        raise UnusableError(f"the model takes the channels {needed}; there are {found}")
    return images


def for_nnunet(case: Case, images: list[sitk.Image], predictor, folder: Path) -> list[str]:
    """The images of a case as files that nnU-Net reads: links with nnU-Net's names, or copies in the model's format.

    Args:
        case: whose images they are.
        images: of the case, by channel.
        predictor: with the model.
        folder: for the files.
    """
    reader = predictor.plans_manager.image_reader_writer_class
    file_ending = predictor.dataset_json["file_ending"]
    files = []
    for (channel, path), image in zip(case.images, images, strict=True):
        name = f"image_{channel:04d}"
        if ending(path) in reader.supported_file_endings:
            files.append(folder / f"{name}{ending(path)}")
            files[-1].symlink_to(path.resolve())
        else:
            files.append(folder / f"{name}{file_ending}")
            try:
                sitk.WriteImage(image, str(files[-1]))
            except RuntimeError as error:
                raise UnusableError(f"{path}: cannot be turned into {file_ending}, as the model needs") from error
    if reader.__name__ == "Tiff3DIO":
        # Spacing is in a file beside a .tif, where nnU-Net looks for it.
        spacing = images[0].GetSpacing()[::-1]
        if files[0].is_symlink():
            beside = case.images[0][1].with_name(f"{case.name}.json")
            spacing = read_json(beside)["spacing"] if beside.is_file() else (1, 1, 1)
        (folder / "image.json").write_text(json.dumps({"spacing": spacing}))
    return [str(file) for file in files]


def predict(predictor, files: list[str], output: str):
    """Predicts a case on the predictor's device; on the CPU, from then on, if the GPU's memory does not suffice.

    Args:
        predictor: with the model.
        files: an image per channel.
        output: path of the labels without ending.
    """
    try:
        with thread_failures_raised():
            predictor.predict_from_files_sequential([files], [output])
        return
    except RuntimeError as error:
        if not isinstance(error, torch.cuda.OutOfMemoryError) and "ALLOC_FAILED" not in str(error):
            raise
        print(f"out of GPU memory ({error}); continuing on the CPU", flush=True)
    # Here and not above: the exception held on to what fills the memory.
    predictor.device = torch.device("cpu")
    predictor.perform_everything_on_device = False
    predictor.network.cpu()
    torch.cuda.empty_cache()
    predictor.predict_from_files_sequential([files], [output])


@contextlib.contextmanager
def thread_failures_raised() -> Iterator[None]:
    """Raises in the main thread what ends another.

    nnU-Net copies patches to the GPU in a thread and waits for them without a limit: when that thread runs out of
    memory, prediction would never end.
    """
    failures, lock = [], threading.Lock()

    def interrupt(failure):
        with lock:
            if threading.excepthook is interrupt:
                failures.append(failure.exc_value)
                # Not SIGINT, which background jobs of a shell ignore.
                signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    def raise_failure(*_):
        raise failures[-1]

    handler, hook = signal.signal(signal.SIGUSR1, raise_failure), threading.excepthook
    threading.excepthook = interrupt
    try:
        yield
    finally:
        with lock:
            threading.excepthook = hook
        signal.signal(signal.SIGUSR1, handler)


def write(labels: sitk.Image, reference: sitk.Image, path: Path):
    """Writes labels as compressed .mha with origin, spacing and direction of the image they belong to."""
    # Without what the model's format says besides, which .mha does not know and SimpleITK warns of.
    labels = sitk.GetImageFromArray(sitk.GetArrayFromImage(labels))
    labels.CopyInformation(reference)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    try:
        sitk.WriteImage(labels, str(unfinished), useCompression=True)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())

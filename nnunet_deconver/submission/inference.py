"""Segments what a container is given: the program of a submission that `nnunet-deconver export-submission` made.

Reads cases as the target lays them out and writes labels and probabilities where the images are in the world, one case
at a time, in this process. It runs once, or answers the requests of grand-challenge's invoke API. No variable needs to
be set, nothing is downloaded, and only the output and the temporary folder are written to. settings.json, beside this
file, says what to do; model/, if it is there too, is the model.
"""

import argparse
import contextlib
import itertools
import json
import os
import queue
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from io import StringIO
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

    class LoadedPredictor(nnUNetPredictor):
        """nnU-Net's predictor with a model: these are not None."""

        network: "torch.nn.Module"
        dataset_json: dict
        plans_manager: PlansManager
        configuration_manager: ConfigurationManager
        label_manager: LabelManager


# What libraries keep for later, by the variable that says where.
CACHES = (
    "CUDA_CACHE_PATH",
    "MPLCONFIGDIR",
    "NUMBA_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCH_HOME",
    "TRITON_CACHE_DIR",
    "XDG_CACHE_HOME",
)


def use_temporary_caches() -> None:
    """Moves what libraries would keep for later into the temporary folder, unless it has a place where it can be.

    Elsewhere a container may be read-only, and its user may have no home.
    """
    caches = Path(tempfile.gettempdir()) / f"nnunet-deconver-{os.getuid()}"
    for variable in ("HOME", *CACHES):
        if not can_write(os.environ.get(variable)):
            os.environ[variable] = str(caches / variable.lower())
            Path(os.environ[variable]).mkdir(parents=True, exist_ok=True)


def can_write(folder: str | None) -> bool:
    """Whether files can be written to a folder, which may be to be made."""
    try:
        os.makedirs(folder or "", exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    use_temporary_caches()  # libraries ask for their variables when they are imported

import numpy as np  # noqa: E402
import SimpleITK as sitk  # noqa: E402
import torch  # noqa: E402

HERE = Path(__file__).resolve().parent
ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd", ".tif", ".tiff", ".png", ".bmp")
# Formats that hold no real numbers; probabilities are written as .tif in their place.
OF_INTEGERS = (".png", ".bmp")
# Of grand-challenge's invoke API.
PORT = 4743


class UnusableError(Exception):
    """Input, a model or a GPU that cannot be used; the message names what, and what is needed."""


@dataclass
class Case:
    """Images to be segmented together."""

    name: str
    images: list[tuple[int, Path]]  # by channel


def main(arguments: list[str] | None = None) -> int:
    """Segments all cases, once or whenever it is asked to.

    Args:
        arguments: of the command line; None for those of this process.

    Returns:
        0 if every case was segmented, else 1.
    """
    parser = argparse.ArgumentParser(description="Segments the cases in a folder with the model of this submission.")
    parser.add_argument("--input", type=Path, default=Path("/input"), metavar="FOLDER", help="default: /input")
    parser.add_argument("--output", type=Path, default=Path("/output"), metavar="FOLDER", help="default: /output")
    baked = HERE / "model"
    model = baked if baked.is_dir() else Path("/opt/ml/model")
    parser.add_argument("--model", type=Path, default=model, metavar="FOLDER", help=f"default: {model}")
    parser.add_argument(
        "--api",
        choices=("exec", "invoke"),
        default="exec",
        help=f"exec: segment and end; invoke: do so at each POST /invoke on port {PORT}; default: exec",
    )
    options = parser.parse_args(arguments)
    try:
        settings = read_json(HERE / "settings.json")
        predictor = load_predictor(options.model, settings)
    except UnusableError as error:
        return fail(error)

    def run() -> int:
        return segment_all(options.input, options.output, predictor, settings)

    if options.api == "invoke":
        serve(run)
    return run()


def fail(reason: object) -> int:
    """Says on stderr why something cannot be done; returns the exit code."""
    print(f"error: {reason}", file=sys.stderr, flush=True)
    return 1


def read_json(path: Path) -> Any:
    """A JSON file; raises UnusableError if there is none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UnusableError(f"{path}: cannot be read ({error})") from error


class Server(ThreadingTCPServer):
    """For HTTP; unlike the standard library's, it does not look up the machine's name, which takes long offline."""

    allow_reuse_address = daemon_threads = True


def serve(run: Callable[[], int], port: int = PORT) -> None:
    """Answers grand-challenge's invoke API until the process ends: GET /health, and POST /invoke, which segments.

    Jobs run one after the other in this thread, the main one, which alone receives signals; others answer meanwhile.

    Args:
        run: segments what is in the input folder at that time; returns 0 if all went well.
        port: to listen on.
    """
    jobs: queue.Queue[Future] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200 if self.path == "/health" else 404)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path != "/invoke":
                self.answer(404)
                return
            job = Future()
            jobs.put(job)
            # Whatever is not 201 is a failure to the platform.
            self.answer(201 if job.result() == 0 else 500)

        def answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            # To stdout: the platform shows what is on stderr as warnings about the result.
            print(format % args, flush=True)

    with Server(("", port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"model loaded; listening on port {port}", flush=True)
        while True:
            job = jobs.get()
            try:
                job.set_result(run())
            # One failed job must not cost the next.
            except Exception:
                traceback.print_exc()
                job.set_result(1)


def load_predictor(model: Path, settings: dict) -> "LoadedPredictor":
    """nnU-Net's predictor with all folds of the model.

    Args:
        model: folder with plans.json, dataset.json and a folder per fold.
        settings: of settings.json.

    Raises:
        UnusableError: if a file of the model is missing, or the GPU cannot be used.
    """
    checkpoints = [f"fold_{fold}/{settings['checkpoint']}" for fold in settings["folds"]]
    missing = [name for name in ("plans.json", "dataset.json", *checkpoints) if not (model / name).is_file()]
    if missing:
        raise UnusableError(f"model {model}: has no {', '.join(missing)}; unpack model.tar.gz there")
    device = choose_device(settings["allow_cpu"])
    # nnU-Net looks for trainers in its own package and in these folders, and reads the variable when it is imported.
    import nnunet_deconver.shim

    shim = Path(nnunet_deconver.shim.__file__).parent
    os.environ["nnUNet_extTrainer"] = os.pathsep.join(map(str, (shim, HERE / "trainers")))
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        use_mirroring=settings["mirroring"],
        perform_everything_on_device=settings["everything_on_device"],
        device=device,
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(model), settings["folds"], settings["checkpoint"])
    return cast("LoadedPredictor", predictor)


def choose_device(allow_cpu: bool) -> torch.device:
    """The GPU, or the CPU where there is none.

    Args:
        allow_cpu: whether the CPU will also do where there is a GPU that cannot be used.

    Raises:
        UnusableError: if there is a GPU that cannot be used, and the CPU will not do.
    """
    try:
        # Needs a driver that knows this CUDA, and a kernel for this GPU.
        torch.ones(1, device="cuda").add_(1).item()
        return torch.device("cuda")
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        reason = " ".join(str(error).split())
    if not gpu_is_visible():
        print("no GPU is visible; computing on the CPU, which takes long", file=sys.stderr, flush=True)
    elif allow_cpu:
        print(f"the GPU cannot be used ({reason}); computing on the CPU, which takes long", file=sys.stderr, flush=True)
    else:
        raise UnusableError(
            f"there is a GPU, and torch {torch.__version__} cannot use it: {reason}; export with a --cuda that its "
            "driver knows, or with --allow-cpu to compute on the CPU, which takes long"
        )
    return torch.device("cpu")


def gpu_is_visible() -> bool:
    """Whether there is an NVIDIA GPU, of use or not, that is not hidden on purpose."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    # "all" says nothing: images say it themselves, wherever they run.
    named = os.environ.get("NVIDIA_VISIBLE_DEVICES", "") not in ("", "all", "none", "void")
    return named or torch.cuda.is_available() or any(Path("/dev").glob("nvidia[0-9]*"))


def segment_all(inputs: Path, output: Path, predictor: "LoadedPredictor", settings: dict) -> int:
    """Segments all cases in a folder.

    Args:
        inputs: folder with cases.
        output: folder for results.
        predictor: with the model.
        settings: of settings.json.

    Returns:
        0 if every case was segmented, else 1.
    """
    try:
        cases = find_cases(inputs, settings, len(predictor.dataset_json["channel_names"]))
    except UnusableError as error:
        return fail(error)
    failed = [case.name for case in cases if not segment(case, output, predictor, settings)]
    print(f"{len(cases) - len(failed)} of {len(cases)} cases segmented", flush=True)
    return fail(f"not segmented: {', '.join(failed)}") if failed else 0


def find_cases(inputs: Path, settings: dict, channels: int) -> list[Case]:
    """The cases in a folder.

    Args:
        inputs: folder in the layout of settings.json: "files" are images with nnU-Net's names; "cases" are folders with
            an image per channel; "sockets" are a job of grand-challenge, inputs.json and a folder per socket, or
            "files" where there is no inputs.json.
        settings: of settings.json.
        channels: how many the model takes.

    Raises:
        UnusableError: if there are none, or a job's sockets are not as they must be.
    """
    if not inputs.is_dir():
        raise UnusableError(f"input {inputs}: no such folder")
    if settings["layout"] == "sockets" and (inputs / "inputs.json").is_file():
        return [job(inputs, settings["input_sockets"])]
    if settings["layout"] == "cases":
        folders = sorted(path for path in inputs.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not folders:
            raise UnusableError(f"input {inputs}: has no folder; there must be one per case")
        return [Case(folder.name, by_suffix(folder, settings["input_sockets"])) for folder in folders]
    paths = images_in(inputs)
    named = {path: match for path in paths if (match := re.fullmatch(r"(.+)_(\d{4})", stem(path)))}
    named = {path: match for path, match in named.items() if int(match[2]) < channels}
    # Images of one channel may have names of their own, and these may end in four digits.
    if channels == 1 and len(named) < len(paths):
        named = {}
    cases: dict[str, Case] = {}
    for path in paths:
        name, channel = (named[path][1], int(named[path][2])) if path in named else (stem(path), 0)
        cases.setdefault(name, Case(name, [])).images.append((channel, path))
    if not cases:
        needed = "neither inputs.json nor an image" if settings["layout"] == "sockets" else "no image"
        raise UnusableError(f"input {inputs}: {needed} ({' '.join(ENDINGS)}) is there")
    return list(cases.values())


def by_suffix(folder: Path, interfaces: list[list[str]]) -> list[tuple[int, Path]]:
    """The images of a case by channel, told by how their names end: t1c, -t1c or _t1c for the suffix t1c.

    Args:
        folder: of the case.
        interfaces: a suffix per channel, in ways that are tried in turn; the first that finds an image for each counts,
            else the last.
    """
    found = []
    for suffixes in interfaces:
        ends = [re.compile(rf"(.*[-_])?{re.escape(suffix)}", re.DOTALL) for suffix in suffixes]
        paths = images_in(folder)
        found = [(channel, path) for channel, end in enumerate(ends) for path in paths if end.fullmatch(stem(path))]
        if {channel for channel, _ in found} == set(range(len(suffixes))):
            break
    return found


def job(inputs: Path, interfaces: list[list[str]]) -> Case:
    """The case of a job of grand-challenge.

    Args:
        inputs: folder with inputs.json.
        interfaces: a socket per channel, in ways that are tried in turn; none for the image sockets as they are listed.

    Raises:
        UnusableError: unless each socket has its image.
    """
    path = inputs / "inputs.json"
    try:
        # What is a socket now was called an interface before.
        sockets = [entry["socket"] if "socket" in entry else entry["interface"] for entry in read_json(path)]
        folders = {socket["slug"]: socket["relative_path"] for socket in sockets}
    except (KeyError, TypeError) as error:
        raise UnusableError(f"{path}: must list sockets, each with slug and relative_path ({error!r})") from error
    images = [slug for slug, folder in folders.items() if folder.startswith("images/")]
    ways = [way for way in interfaces or [images] if set(way) <= set(images)]
    if not images or not ways:
        needed = " or ".join(", ".join(way) for way in interfaces) or "any"
        raise UnusableError(
            f"{path}: has not the image sockets that are needed ({needed}); it has: {', '.join(images) or 'none'}; "
            "input_sockets in settings.json says which the model takes"
        )
    chosen = ways[0]
    unused = [f"{slug} ({folder})" for slug, folder in folders.items() if slug not in chosen]
    if unused:
        print(f"inputs passed over: {', '.join(unused)}", flush=True)
    found = []
    for channel, slug in enumerate(chosen):
        folder = inputs / folders[slug]
        paths = images_in(folder) if folder.is_dir() else []
        if len(paths) != 1:
            names = ", ".join(file.name for file in paths) or "none"
            raise UnusableError(f"socket {slug}: needs one image in {folder}, has {len(paths)}: {names}")
        found.append((channel, paths[0]))
    return Case(stem(found[0][1]), found)


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


def segment(case: Case, output: Path, predictor: "LoadedPredictor", settings: dict) -> bool:
    """Segments a case and writes what settings.json asks for, or says on stderr why it cannot.

    Args:
        case: to segment.
        output: folder for results.
        predictor: with the model.
        settings: of settings.json.

    Returns:
        Whether it could.
    """
    print(f"{case.name}: {', '.join(f'channel {channel}: {path}' for channel, path in case.images)}", flush=True)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            start = time.monotonic()
            images = read_images(case, predictor)
            files = for_nnunet(case, images, predictor, Path(scratch))
            reference = images[0]
            del images
            data, properties = preprocess(predictor, files)
            read = time.monotonic()
            logits, device = predict(predictor, data)
            predicted = time.monotonic()
            write_outputs(case, reference, logits, properties, output, predictor, settings)
            written = time.monotonic()
    # Whatever is wrong with a case must not cost the others.
    except Exception as error:
        if not isinstance(error, UnusableError):
            traceback.print_exc()
        fail(f"{case.name}: {error or type(error).__name__}")
        return False
    path = deconvolution_path(predictor.network, device)
    print(
        f"{case.name}: {' x '.join(map(str, reference.GetSize()))} voxels; read in {read - start:.1f} s, predicted in "
        f"{predicted - read:.1f} s on {device_name(device)}{f' (NDC: {path})' if path else ''}, written in "
        f"{written - predicted:.1f} s",
        flush=True,
    )
    return True


def device_name(device: torch.device) -> str:
    """A GPU's own name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def deconvolution_path(network: torch.nn.Module, device: torch.device) -> str | None:
    """What computes a network's nonnegative deconvolutions (NDC) on a device; None if it has none."""
    from nnunet_deconver.layers.nonnegative_deconvolution import NonnegativeDeconvolution
    from nnunet_deconver.ops import explain_backend

    if not any(isinstance(module, NonnegativeDeconvolution) for module in network.modules()):
        return None
    path, reason = explain_backend(device)
    return path if reason is None else f"{path}, because {reason}"


def read_images(case: Case, predictor: "LoadedPredictor") -> list[sitk.Image]:
    """The images of a case by channel.

    Raises:
        UnusableError: if one cannot be read, or they are not what the model takes.
    """
    names = predictor.dataset_json["channel_names"]
    needed = ", ".join(f"{number}: {name}" for number, name in names.items())
    if not case.images:
        raise UnusableError(f"the model takes the channels {needed}; there are none")
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
    in_order = [channel for channel, _ in case.images] == list(range(len(images)))
    if not in_order or sum(image.GetNumberOfComponentsPerPixel() for image in images) != len(names):
        found = ", ".join(f"{channel}: {path.name}" for channel, path in case.images)
        raise UnusableError(f"the model takes the channels {needed}; there are {found}")
    return images


def for_nnunet(case: Case, images: list[sitk.Image], predictor: "LoadedPredictor", folder: Path) -> list[str]:
    """The images of a case as files that nnU-Net reads: links with nnU-Net's names, or copies in the model's format.

    Args:
        case: whose images they are.
        images: of the case, by channel.
        predictor: with the model.
        folder: for the files.
    """
    reader: Any = predictor.plans_manager.image_reader_writer_class  # its endings are not in nnU-Net's types
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


def preprocess(predictor: "LoadedPredictor", files: list[str]) -> tuple[torch.Tensor, dict]:
    """What nnU-Net's preprocessing makes of a case, and what it needs to know to undo it."""
    configuration = predictor.configuration_manager
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case(
        files, None, predictor.plans_manager, configuration, predictor.dataset_json
    )
    return torch.as_tensor(data), properties


def predict(predictor: "LoadedPredictor", data: torch.Tensor) -> tuple[torch.Tensor, torch.device]:
    """Predicts a case on the predictor's device, or on the CPU if the GPU's memory does not suffice.

    Args:
        predictor: with the model.
        data: (C, *S), preprocessed.

    Returns:
        Logits on the CPU, and the device they were computed on.
    """
    device, everything_on_device = predictor.device, predictor.perform_everything_on_device
    try:
        with thread_failures_raised():
            return predictor.predict_logits_from_preprocessed_data(data).cpu(), device
    except RuntimeError as error:
        if not isinstance(error, torch.cuda.OutOfMemoryError) and "ALLOC_FAILED" not in str(error):
            raise
        reason = str(error)
    # Here and not above: the exception held on to what fills the memory.
    print(f"out of GPU memory ({reason}); this case takes long, on the CPU", file=sys.stderr, flush=True)
    predictor.device, predictor.perform_everything_on_device = torch.device("cpu"), False
    predictor.network.cpu()
    torch.cuda.empty_cache()
    try:
        return predictor.predict_logits_from_preprocessed_data(data), predictor.device
    finally:
        # The next case may be smaller.
        predictor.device, predictor.perform_everything_on_device = device, everything_on_device


@contextlib.contextmanager
def thread_failures_raised() -> Iterator[None]:
    """Raises in the main thread what ends another.

    nnU-Net copies patches to the GPU in a thread and waits for them without a limit: when that thread runs out of
    memory, prediction would never end.
    """
    failures, lock, main = [], threading.Lock(), threading.main_thread().ident
    assert main is not None  # it runs

    def interrupt(failure: threading.ExceptHookArgs) -> None:
        with lock:
            if threading.excepthook is interrupt:
                failures.append(failure.exc_value)
                # Not SIGINT, which background jobs of a shell ignore.
                signal.pthread_kill(main, signal.SIGUSR1)

    def raise_failure(*_: object) -> None:
        raise failures[-1]

    handler, hook = signal.signal(signal.SIGUSR1, raise_failure), threading.excepthook
    threading.excepthook = interrupt
    try:
        yield
    finally:
        with lock:
            threading.excepthook = hook
        signal.signal(signal.SIGUSR1, handler)


def write_outputs(
    case: Case,
    reference: sitk.Image,
    logits: torch.Tensor,
    properties: dict,
    output: Path,
    predictor: "LoadedPredictor",
    settings: dict,
) -> None:
    """Writes labels and probabilities of a case.

    Args:
        case: of which they are.
        reference: the first of its images.
        logits: of its preprocessed images.
        properties: from `preprocess`.
        output: folder for results.
        predictor: with the model.
        settings: of settings.json.
    """
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    manager, dataset = predictor.plans_manager, predictor.dataset_json
    maps = any(wanted["probability"] is not None for wanted in settings["outputs"])
    converted: Any = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, manager, predictor.configuration_manager, predictor.label_manager, properties, maps
    )
    labels, probabilities = converted if maps else (converted, None)
    writer = manager.image_reader_writer_class()
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / f"{case.name}{dataset['file_ending']}"
        writer.write_seg(labels, str(written), properties)
        for wanted in settings["outputs"]:
            folder = output / wanted["folder"]
            folder.mkdir(parents=True, exist_ok=True)
            if wanted["probability"] is not None:
                assert probabilities is not None
                values = probabilities[channel_of(wanted["probability"], dataset, predictor.label_manager)]
                image = sitk.GetImageFromArray(as_written(values, writer, properties, dataset["file_ending"]))
                known = settings["ending"] or dataset["file_ending"]
                write(image, reference, folder / f"{case.name}{'.tif' if known in OF_INTEGERS else known}")
            elif settings["ending"] is None:
                # As nnU-Net leaves it, which with some formats is two files.
                for file in written.parent.iterdir():
                    with whole_file(folder / file.name) as unfinished:
                        shutil.copyfile(file, unfinished)
            else:
                # Without what the model's format says besides, which others do not know and SimpleITK warns of.
                image = sitk.GetImageFromArray(sitk.GetArrayFromImage(sitk.ReadImage(str(written))))
                write(image, reference, folder / f"{case.name}{settings['ending']}")


def channel_of(name: str, dataset: dict, label_manager: "LabelManager") -> int:
    """Where nnU-Net puts the probability of a label or region of dataset.json."""
    if label_manager.has_regions:
        return [region for region in dataset["labels"] if region not in ("background", "ignore")].index(name)
    (value,) = np.atleast_1d(dataset["labels"][name])
    return label_manager.all_labels.index(value)


def as_written(values: np.ndarray, writer: "BaseReaderWriter", properties: dict, file_ending: str) -> np.ndarray:
    """Lays an array along the axes of the image file, as nnU-Net's writer lays labels.

    Readers may turn images, and writers turn labels back, but write integers alone: a small array of them shows how.

    Args:
        values: (z, y, x) as nnU-Net has them.
        writer: of the model.
        properties: from `preprocess`.
        file_ending: of the writer's files.

    Returns:
        The same values in float32, (z, y, x) or (y, x) of the file.
    """
    probe = np.arange(5 * 6 * 7, dtype=np.uint8).reshape(5, 6, 7)[: values.shape[0]]
    # Writers check what they wrote against the size of the image, and print.
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(StringIO()):
        writer.write_seg(probe, f"{scratch}/probe{file_ending}", properties)
        found = sitk.GetArrayFromImage(sitk.ReadImage(f"{scratch}/probe{file_ending}"))
    flat = found.ndim == 2
    found = found[None] if flat else found
    axes = [probe.shape.index(size) for size in found.shape]
    for steps in itertools.product((1, -1), repeat=3):
        turn = tuple(slice(None, None, step) for step in steps)
        if np.array_equal(probe.transpose(axes)[turn], found):
            turned = np.ascontiguousarray(values.transpose(axes)[turn], np.float32)
            return turned[0] if flat else turned
    raise UnusableError(
        f"{type(writer).__name__} changes labels in other ways than turning them; probabilities cannot follow"
    )


def write(image: sitk.Image, reference: sitk.Image, path: Path) -> None:
    """Writes labels or probabilities, compressed, with origin, spacing and direction of the image they belong to."""
    image.CopyInformation(reference)
    with whole_file(path) as unfinished:
        sitk.WriteImage(image, str(unfinished), useCompression=True)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` when all is written."""
    unfinished = path.with_name(f".{path.name}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    # The first process of a container ignores it otherwise; and temporary files are to be removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())

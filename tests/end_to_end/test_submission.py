"""An exported model predicts what nnUNetv2_predict does, in a process that has no more than a container has."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import nnunet_deconver
from nnunet_deconver.networks.architecture import build_network, deconver_architecture

pytestmark = pytest.mark.slow

NO_GPU = "no GPU is visible; computing on the CPU, which takes long\n"
UNSHARE = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
REQUEST = """
import sys, time, urllib.error, urllib.request

method, path = sys.argv[1:]
for _ in range(600):
    try:
        print(urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:4743{path}", method=method)).status)
        break
    except urllib.error.HTTPError as error:
        print(error.code)
        break
    except urllib.error.URLError:
        time.sleep(0.2)
"""


class Container:
    """An exported folder as a running image has it, on folders of the test."""

    def __init__(self, export: Path, root: Path, threads: dict[str, str]):
        self.input, self.output, self.model = root / "input", root / "output", root / "model"
        self.export, self.root, self.log, self.threads = export, root / "root", root / "log", threads
        for folder in (self.input, self.output, self.model, self.root):
            folder.mkdir(parents=True)
        self.output.chmod(0o777)
        if (export / "model.tar.gz").exists():
            with tarfile.open(export / "model.tar.gz") as archive:
                archive.extractall(self.model, filter="data")

    def start(self, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) -> subprocess.Popen:
        """Starts a command of the image's Python; without one, that of the Dockerfile."""
        dockerfile = (self.export / "Dockerfile").read_text()
        environment = dict(re.findall(r"(\w+)=(\S+)", re.search(r"^ENV (.*\n)+?(?=\n)", dockerfile, re.M)[0]))
        entrypoint = json.loads(re.search(r"^ENTRYPOINT (.*)", dockerfile, re.M)[1])
        environment |= self.threads
        python = Path(sys.executable)
        read_only = {sys.base_prefix, sys.prefix, str(Path(nnunet_deconver.__file__).parents[1])}
        binds = [[folder, folder, False] for folder in sorted(read_only)]
        binds += [
            [str(self.input), "/input", False],
            [str(self.output), "/output", True],
            [str(self.model), "/opt/ml/model", False],
            [str(self.export), "/opt/algorithm", False],
        ]
        asked = {
            "root": str(self.root),
            "folder": "/opt/algorithm",
            "binds": binds,
            # A home that is not there, as where the platform runs an image as another user.
            "environment": environment
            | {"PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin", "HOME": "/home/nobody"},
            "command": [str(python), *map(str, command or entrypoint[1:])],
        }
        here = Path(__file__).with_name("container.py")
        inside = [*UNSHARE, str(python), str(here), json.dumps(asked)]
        return subprocess.Popen(inside, stdout=stdout, stderr=stderr, text=True)

    def run(self, *command) -> tuple[int, str, str]:
        """Runs a command to its end; returns its exit code, stdout and stderr."""
        process = self.start(*command)
        try:
            out, err = process.communicate(timeout=600)
        finally:
            process.kill()
        return process.returncode, out, err

    def give(self, files: dict[str, Path], *, sockets: bool = False):
        """Puts images into /input, in place of what was there, and empties /output, as platforms do between jobs."""
        for folder in (self.input, self.output):
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, source in files.items():
            (self.input / name).parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.ReadImage(str(source)), str(self.input / name))
        if sockets:
            folders = sorted({str(Path(name).parent) for name in files})
            entries = [{"socket": {"slug": Path(folder).name, "relative_path": folder}} for folder in folders]
            entries.append({"value": 42, "socket": {"slug": "age", "relative_path": "age.json"}})
            (self.input / "inputs.json").write_text(json.dumps(entries))


@pytest.fixture
def container(nnunet, tmp_path):
    """A function that makes a container of an exported folder, with as many threads as nnU-Net's commands have here.

    How numbers are shared among threads decides how they are rounded.
    """
    done = subprocess.run([*UNSHARE, "mount", "--make-rprivate", "/"], capture_output=True, text=True)
    if os.getuid() != 0 or done.returncode:
        pytest.skip(f"needs a root that may make namespaces: {done.stderr.strip() or 'not root'}")
    named = {name: nnunet.environment.get(name) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "nnUNet_def_n_proc")}
    threads = {name: value for name, value in named.items() if value is not None}
    return lambda export: Container(export, tmp_path / "container", threads)


TRIES = """
import errno, os, shutil, socket, tempfile
from pathlib import Path

def fails(function, *arguments):
    try:
        function(*arguments)
        return None
    except OSError as error:
        return errno.errorcode.get(error.errno, error.errno)

report = {
    "user": os.getuid() != 0 and os.getgid() != 0,
    "capabilities": {line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapEff", "CapPrm"))},
    "first process": os.getpid() == 1,
    "root": fails(Path("/x").touch),
    "writes": {fails(Path(folder, "x").touch) for folder in ("/input", "/opt/ml/model", "/opt/algorithm", "/etc")},
    "home": fails(os.makedirs, os.environ["HOME"]),
    "allowed": {fails(Path(folder, "x").touch) for folder in ("/tmp", "/output")},
    "out": fails(socket.create_connection, ("192.0.2.1", 80), 5),
    "name": bool(fails(socket.getaddrinfo, "pypi.org", 443)),
    "compilers": [name for name in ("cc", "gcc", "clang", "tcc", "c++", "g++") if shutil.which(name)],
}
print(repr(report))
"""


def test_the_container_of_these_tests_restricts(container, tmp_path):
    """What the other tests promise by it."""
    (tmp_path / "export").mkdir()
    dockerfile = Path(nnunet_deconver.__file__).parent / "submission" / "Dockerfile"
    text = dockerfile.read_text().replace("$arguments", "")
    (tmp_path / "export" / "Dockerfile").write_text(text)
    code, out, err = container(tmp_path / "export").run("-c", TRIES)
    assert code == 0, err
    report = eval(out)
    assert report == {
        "user": True,
        "capabilities": {"0000000000000000"},
        "first process": True,
        "root": "EROFS",
        "writes": {"EROFS"},
        "home": "EROFS",
        "allowed": {None},
        "out": "ENETUNREACH",
        "name": True,
        "compilers": [],
    }


@pytest.fixture(scope="module")
def trained(warm, tiny):
    """The folder of a model trained for four iterations with a trainer of a folder of its own."""
    return warm.train(901, "nnUNetTrainerDeconverTiny", **tiny)[1]


OURS = "trainer of this package"
MODELS = {
    "trainer of the user's own": ("nnUNetTrainerDeconverTiny", deconver_architecture, False),
    OURS: ("nnUNetTrainerDeconver", deconver_architecture, False),
    "stock trainer, plans that name Deconver": ("nnUNetTrainer", deconver_architecture, True),
    "stock trainer and plans": ("nnUNetTrainer", dict, True),
}


def write_model(kind, trained, label_finding, root: Path) -> Path:
    """A model of two folds that finds all labels."""
    trainer, architecture, in_plans = MODELS[kind]
    model = root / "Dataset901_Tiny" / f"{trainer}__tinyPlans__3d_fullres"
    model.mkdir(parents=True)
    plans = json.loads((trained / "plans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    built = architecture(configuration["architecture"])
    if in_plans:
        configuration["architecture"] = built
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text((trained / "dataset.json").read_text())
    checkpoint = torch.load(trained / "fold_0" / "checkpoint_final.pth", weights_only=False)
    for fold in range(2):
        network = build_network(built, 1, 3, deep_supervision=False)
        if architecture is deconver_architecture:
            network.load_state_dict(checkpoint["network_weights"])
        weights = label_finding(network, (1, 1, *configuration["patch_size"]), seed=fold)
        (model / f"fold_{fold}").mkdir()
        changed = {"network_weights": weights, "trainer_name": trainer}
        torch.save(checkpoint | changed, model / f"fold_{fold}" / "checkpoint_final.pth")
    return model


def predict(warm, tiny, model: Path, images: Path, out: Path, *options):
    """What nnU-Net's own command writes."""
    trainer, plans, configuration = model.name.split("__")
    arguments = ["-i", images, "-o", out, "-d", 901, "-f", 0, 1, "-tr", trainer, "-p", plans, "-c", configuration]
    variables = tiny | {"nnUNet_results": str(model.parents[1])}
    warm.run("nnUNetv2_predict", *arguments, "-device", "cpu", "-npp", 1, "-nps", 1, *options, **variables)


def export(nnunet, tiny, model: Path, out: Path, *options) -> Path:
    nnunet.run("nnunet-deconver", "export-submission", model, "-o", out, *options, **tiny)
    return out


def assert_same(file: Path, expected: np.ndarray, image: Path):
    """The voxels to the byte, on the image's grid."""
    found = sitk.ReadImage(str(file))
    voxels = sitk.GetArrayFromImage(found)
    assert (voxels.dtype, voxels.shape) == (expected.dtype, expected.shape)
    assert voxels.tobytes() == np.ascontiguousarray(expected).tobytes()
    assert found.GetSpacing() == sitk.ReadImage(str(image)).GetSpacing()


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


# The remaining one is in every test below.
@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != OURS])
def test_voxels_are_those_of_nnunet(warm, tiny, trained, label_finding, container, tmp_path, kind):
    """A model of each way to find its network, of two folds, on the .mha that grand-challenge gives."""
    model = write_model(kind, trained, label_finding, tmp_path / "results")
    mirroring = kind != "stock trainer and plans"
    images = warm.raw / "Dataset901_Tiny" / "imagesTs"
    predict(warm, tiny, model, images, tmp_path / "expected", *([] if mirroring else ["--disable_tta"]))
    options = ["--api", "exec", "--output-socket", "organs"] + ([] if mirroring else ["--no-mirroring"])
    exported = export(warm, tiny, model, tmp_path / "export", *options)
    assert (exported / "trainers").is_dir() == (model.name.split("__")[0] == "nnUNetTrainerDeconverTiny")

    job = container(exported)
    job.give({"images/mri/5.mha": images / "case_5_0000.nii.gz"}, sockets=True)
    code, out, err = job.run()
    assert (code, err) == (0, NO_GPU), out
    assert "inputs passed over: age (age.json)" in out
    labels = read(tmp_path / "expected" / "case_5.nii.gz")
    assert set(labels.flat) == {0, 1, 2}
    (written,) = (path for path in job.output.rglob("*") if path.is_file())
    assert written == job.output / "images" / "organs" / "5.mha"
    assert_same(written, labels, images / "case_5_0000.nii.gz")


@pytest.fixture(scope="module")
def deconver(warm, tiny, trained, label_finding, tmp_path_factory) -> SimpleNamespace:
    """A model, two images, and the folder of what nnUNetv2_predict makes of them with --save_probabilities."""
    root = tmp_path_factory.mktemp("deconver")
    model = write_model(OURS, trained, label_finding, root / "results")
    raw = warm.raw / "Dataset901_Tiny"
    (root / "images").mkdir()
    images = {}
    for case, folder in (("case_4", "imagesTr"), ("case_5", "imagesTs")):
        images[case] = shutil.copy(raw / folder / f"{case}_0000.nii.gz", root / "images")
    predict(warm, tiny, model, root / "images", root / "predicted", "--save_probabilities")
    return SimpleNamespace(model=model, images=images, predicted=root / "predicted")


def test_two_jobs_of_the_invoke_api(nnunet, tiny, deconver, container, tmp_path):
    """Over HTTP, one after the other with the model loaded once, labels and probabilities; between them one fails."""
    outputs = ["--output", "labels=lesion-mask", "probability:lesion=lesion-probability"]
    job = container(export(nnunet, tiny, deconver.model, tmp_path / "export", *outputs))
    with open(job.log, "w") as log:
        process = job.start(stdout=log, stderr=subprocess.STDOUT)
    try:
        (server,) = wait(lambda: Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split(), process)
        inside = ["nsenter", "--net", "--target", server, sys.executable, "-c", REQUEST]

        def ask(method: str, path: str) -> int:
            return int(subprocess.run([*inside, method, path], capture_output=True, text=True, timeout=300).stdout)

        assert ask("GET", "/health") == 200
        for name, answer in (("case_5", 201), (None, 500), ("case_4", 201)):
            image = deconver.images[name or "case_5"]
            job.give({f"images/{'mri' if name else 'ct'}/{name}.mha": image}, sockets=name is not None)
            if name is None:
                shutil.rmtree(job.input / "images")
            assert ask("POST", "/invoke") == answer
            assert ask("GET", "/health") == 200
            if name is None:
                assert not list(job.output.iterdir())
                continue
            written = {path.relative_to(job.output).as_posix() for path in job.output.rglob("*") if path.is_file()}
            assert written == {f"images/lesion-mask/{name}.mha", f"images/lesion-probability/{name}.mha"}
            labels = read(deconver.predicted / f"{name}.nii.gz")
            assert_same(job.output / "images" / "lesion-mask" / f"{name}.mha", labels, image)
            probabilities = np.load(deconver.predicted / f"{name}.npz")["probabilities"]
            assert_same(job.output / "images" / "lesion-probability" / f"{name}.mha", probabilities[2], image)
        assert process.poll() is None
        # As the platform ends it; the first process of a container does not heed this by itself.
        os.kill(int(server), signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    said = job.log.read_text()
    assert said.count("model loaded") == 1
    assert said.count("voxels; read in") == 2
    assert "error: input /input: neither inputs.json nor an image" in said


def wait(found, process: subprocess.Popen):
    """What a function returns, as soon as it is something."""
    for _ in range(600):
        if process.poll() is not None:
            break
        if result := found():
            return result
        time.sleep(0.1)
    raise AssertionError(f"ended with {process.poll()}")


LAYOUTS = {
    "grand-challenge": ("images/mri/{}.mha", "images/segmentation/{}.mha", ("--api", "exec")),
    "brats": ("{0}/{0}-t1c.nii.gz", "{}.nii.gz", ("--input-sockets", "t1c")),
    "folder": ("{}_0000.nii.gz", "{}.nii.gz", ()),
}


@pytest.mark.parametrize("target", LAYOUTS)
def test_every_target_in_its_layout(warm, tiny, deconver, container, tmp_path, target):
    """Both cases; as two jobs on grand-challenge, which gives one at a time."""
    given, written, options = LAYOUTS[target]
    job = container(export(warm, tiny, deconver.model, tmp_path / "export", "--target", target, *options))
    cases = list(deconver.images)
    for names in [[case] for case in cases] if target == "grand-challenge" else [cases]:
        job.give({given.format(n): deconver.images[n] for n in names}, sockets=target == "grand-challenge")
        code, out, err = job.run()
        assert (code, err) == (0, NO_GPU), out
        files = {path.relative_to(job.output).as_posix() for path in job.output.rglob("*") if path.is_file()}
        assert files == {written.format(name) for name in names}
        for name in names:
            labels = read(deconver.predicted / f"{name}.nii.gz")
            assert_same(job.output / written.format(name), labels, deconver.images[name])
    assert f"{len(names)} of {len(names)} cases segmented" in out

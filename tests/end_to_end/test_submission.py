"""An exported model predicts what nnUNetv2_predict does, in a process that has no more than a container has."""

import json
import os
import subprocess
import sys
import tarfile

import pytest
import SimpleITK as sitk
import torch

from nnunet_deconver.networks.plans import build_network, deconver_architecture

pytestmark = pytest.mark.slow

# Python imports this first: whoever opens a socket, looks up a name or starts a process by multiprocessing fails.
WITHOUT_NETWORK = """
import multiprocessing.process, socket

class Refused(socket.socket):
    def __init__(self, *arguments, **keywords):
        raise RuntimeError("no network here")

def refuse(*arguments, **keywords):
    raise RuntimeError("not allowed here")

socket.socket = Refused
socket.create_connection = socket.getaddrinfo = socket.gethostbyname = refuse
multiprocessing.process.BaseProcess.start = refuse
"""


@pytest.fixture
def container(tmp_path):
    """A function that runs the program of an export; returns the process."""
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(WITHOUT_NETWORK)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet", "PYTHON"))}
    environment |= {"PYTHONPATH": str(tmp_path / "python"), "PYTHONWARNINGS": "ignore"}

    def run(*command) -> subprocess.CompletedProcess:
        command = [sys.executable, *map(str, command)]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)

    for use, said in (
        ("import socket; socket.socket()", "no network here"),
        ("import socket; socket.getaddrinfo('localhost', 1)", "not allowed here"),
        ("import multiprocessing; multiprocessing.Process().start()", "not allowed here"),
    ):
        assert said in run("-c", use).stderr
    return run


@pytest.fixture(scope="module")
def trained(nnunet, tiny):
    """The folder of a model trained for four iterations with a trainer of a folder of its own."""
    return nnunet.train(901, "nnUNetTrainerDeconverTiny", **tiny)[1]


MODELS = {
    "trainer of the user's own": ("nnUNetTrainerDeconverTiny", deconver_architecture, False),
    "trainer of this package": ("nnUNetTrainerDeconver", deconver_architecture, False),
    "stock trainer, plans that name Deconver": ("nnUNetTrainer", deconver_architecture, True),
    "stock trainer and plans": ("nnUNetTrainer", dict, True),
}


@pytest.mark.parametrize("kind", MODELS)
def test_voxels_are_those_of_nnunet(nnunet, tiny, trained, label_finding, container, tmp_path, kind):
    """A model of each way to find its network, of two folds, on the .mha that grand-challenge gives."""
    trainer, architecture, in_plans = MODELS[kind]
    model = tmp_path / "results" / "Dataset901_Tiny" / f"{trainer}__tinyPlans__3d_fullres"
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

    mirroring = kind != "stock trainer and plans"
    raw = nnunet.raw / "Dataset901_Tiny"
    options = ["-tr", trainer, "-p", "tinyPlans", "-c", "3d_fullres", "-device", "cpu", "-npp", 1, "-nps", 1]
    options += [] if mirroring else ["--disable_tta"]
    variables = tiny | {"nnUNet_results": str(tmp_path / "results")}
    out = tmp_path / "expected"
    nnunet.run("nnUNetv2_predict", "-i", raw / "imagesTs", "-o", out, "-d", 901, "-f", 0, 1, *options, **variables)
    expected = sitk.ReadImage(str(out / "case_5.nii.gz"))

    export = tmp_path / "export"
    options = ["--output-socket", "organs"] + ([] if mirroring else ["--no-mirroring"])
    nnunet.run("nnunet-deconver", "export-submission", model, "-o", export, *options, **tiny)
    assert (export / "trainers").is_dir() == (trainer == "nnUNetTrainerDeconverTiny")
    with tarfile.open(export / "model.tar.gz") as archive:
        archive.extractall(tmp_path / "model", filter="data")
    socket = tmp_path / "input" / "images" / "mri"
    socket.mkdir(parents=True)
    entry = {"socket": {"slug": "mr-image", "relative_path": "images/mri"}}
    (tmp_path / "input" / "inputs.json").write_text(json.dumps([entry]))
    image = sitk.ReadImage(str(raw / "imagesTs" / "case_5_0000.nii.gz"))
    sitk.WriteImage(image, str(socket / "5.mha"))
    where = ["--input", tmp_path / "input", "--output", tmp_path / "output", "--model", tmp_path / "model"]
    done = container(export / "inference.py", *where)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout

    found = sitk.ReadImage(str(tmp_path / "output" / "images" / "organs" / "5.mha"))
    assert found.GetPixelID() == expected.GetPixelID()
    voxels = sitk.GetArrayFromImage(found)
    assert voxels.tobytes() == sitk.GetArrayFromImage(expected).tobytes()
    assert set(voxels.flat) == {0, 1, 2}
    assert found.GetSpacing() == image.GetSpacing()

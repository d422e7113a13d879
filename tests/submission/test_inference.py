"""The program of an exported folder, in this process."""

import gzip
import http.client
import importlib.util
import json
import os
import queue
import re
import signal
import socket
import threading
import time

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_deconver.cli import main
from nnunet_deconver.submission import export

NO_GPU = "no GPU is visible; computing on the CPU, which takes long\n"
TILT = (0.8, 0.6, 0, -0.6, 0.8, 0, 0, 0, 1)


@pytest.fixture(autouse=True)
def without_packages(monkeypatch):
    """Requirements are tested elsewhere, and take long to make; the variable that the program sets is put back."""
    versions = {"nnunet-deconver": "1", "nnunetv2": "2", "torch": "3"}
    monkeypatch.setattr(export, "write_requirements", lambda *_: versions)
    monkeypatch.setenv("nnUNet_extTrainer", "")


@pytest.fixture
def submission(tmp_path):
    """A function that exports a model with the model in the image, and returns its program as a module."""

    def export(model, *options):
        out = tmp_path / "export"
        assert main(["export-submission", str(model), "-o", str(out), "--bake-model", *options]) == 0
        spec = importlib.util.spec_from_file_location("exported_inference", out / "inference.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return export


@pytest.fixture
def run(tmp_path, capfd):
    """A function that runs the program on the folder `input`; returns its exit code and what it said on stderr."""

    def run(program):
        capfd.readouterr()
        code = program.main(["--input", str(tmp_path / "input"), "--output", str(tmp_path / "output")])
        said = capfd.readouterr()
        print(said.out, said.err, sep="\n")  # for pytest, when a test fails
        run.stdout = said.out
        return code, said.err.replace(NO_GPU, "")

    return run


def image(seed=0, size=(20, 18, 22), rgb=False, tilted=True) -> sitk.Image:
    """Noise with structure, anisotropic and tilted."""
    rng = np.random.default_rng(seed)
    shape = (*size[::-1], 3) if rgb else size[::-1]
    array = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(rng.random(size[::-1])), 2))
    array = (array - array.min()) / (array.max() - array.min())
    array = np.stack([array, 1 - array, array**2], -1) if rgb else array
    volume = sitk.GetImageFromArray((255 * array).reshape(shape).astype(np.uint8), isVector=rgb)
    volume.SetSpacing((0.9, 0.9, 1.5)[: len(size)])
    if tilted and len(size) == 3:
        volume.SetOrigin((-31.5, 12.25, 7.125))
        volume.SetDirection(TILT)
    return volume


def save(volume, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(volume, str(path), **options)


def expected(model, files, ending, tmp_path, folds=(0,), mirroring=True) -> np.ndarray:
    """The labels that nnU-Net's own predictor writes for files in the model's format."""
    predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), folds)
    target = tmp_path / "expected" / "case"
    target.parent.mkdir(exist_ok=True)
    predictor.predict_from_files_sequential([[str(file) for file in files]], [str(target)])
    labels = sitk.GetArrayFromImage(sitk.ReadImage(f"{target}{ending}"))
    assert set(np.unique(labels)) == {0, 1, 2}
    return labels


def read(path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def segmentation(tmp_path):
    """Where the labels are unless another socket is asked for."""
    return tmp_path / "output" / "images" / "segmentation"


def write_job(folder, sockets, key="socket"):
    """inputs.json as grand-challenge writes it, with a socket that is no image."""
    entries = [
        {"image": {"name": f"{slug}.mha"}, "value": None, key: {"slug": slug, "relative_path": path}}
        for slug, path in sockets.items()
    ]
    entries.append({"image": None, "value": 61, key: {"slug": "age", "relative_path": "age.json"}})
    folder.mkdir(exist_ok=True)
    (folder / "inputs.json").write_text(json.dumps(entries))


@pytest.mark.parametrize("key", ["socket", "interface"])
@pytest.mark.parametrize("named", [True, False], ids=["sockets named", "sockets in their order"])
def test_a_job_of_grand_challenge(trained_model, submission, run, tmp_path, key, named):
    """Two channels, whose sockets are listed in another order than the model's and lie in folders of other names."""
    model = trained_model(channels=("T1", "FLAIR"))
    t1, flair = image(1), image(2)
    save(t1, tmp_path / "input" / "images" / "t1" / "a-1.mha")
    save(flair, tmp_path / "input" / "images" / "brain-flair" / "a-2.mha")
    write_job(tmp_path / "input", {"flair-mri": "images/brain-flair", "t1-mri": "images/t1"}, key)
    sockets = ["--input-sockets", "t1-mri", "flair-mri"] if named else []
    assert run(submission(model, "--output-socket", "lesions", *sockets)) == (0, "")

    channels = [t1, flair] if named else [flair, t1]
    files = [tmp_path / f"a_{channel:04d}.nii.gz" for channel in range(2)]
    for volume, file in zip(channels, files, strict=True):
        save(volume, file)
    (written,) = (tmp_path / "output").rglob("*.*")
    assert written == tmp_path / "output" / "images" / "lesions" / ("a-1.mha" if named else "a-2.mha")
    np.testing.assert_array_equal(read(written), expected(model, files, ".nii.gz", tmp_path))


INTERFACES = {
    "the first": (("t1-mri", "flair-mri"), [0, 1]),
    "the second": (("t1-post", "flair-mri"), [0, 1]),
    "both, of which the first counts": (("flair-mri", "t1-post", "t1-mri"), [2, 0]),
}


@pytest.mark.parametrize("interface", INTERFACES)
def test_an_algorithm_of_several_interfaces(trained_model, submission, run, tmp_path, interface):
    """What is not an image of the interface is named and passed over."""
    slugs, channels = INTERFACES[interface]
    model = trained_model(channels=("T1", "FLAIR"))
    for number, slug in enumerate(slugs):
        save(image(number), tmp_path / "input" / "images" / slug / f"{number}.mha")
        save(image(number), tmp_path / "own" / f"{number}.nii.gz")
    write_job(tmp_path / "input", {slug: f"images/{slug}" for slug in slugs})
    options = ["--input-sockets", "t1-mri", "flair-mri", "--input-sockets", "t1-post", "flair-mri"]
    assert run(submission(model, *options)) == (0, "")
    passed_over = ["t1-post (images/t1-post)"] if len(slugs) == 3 else []
    assert f"inputs passed over: {', '.join([*passed_over, 'age (age.json)'])}\n" in run.stdout
    files = [tmp_path / "own" / f"{channel}.nii.gz" for channel in channels]
    labels = expected(model, files, ".nii.gz", tmp_path)
    np.testing.assert_array_equal(read(segmentation(tmp_path) / f"{channels[0]}.mha"), labels)


def test_a_folder_per_case(trained_model, submission, run, tmp_path):
    """Two cases as BraTS has them, with a file that is no channel; then with the names of an older year."""
    model = trained_model(channels=("T1", "T1ce", "T2", "FLAIR"))
    suffixes = ("t1n", "t1c", "t2w", "t2f"), ("t1", "t1ce", "t2", "flair")
    for case, names, separator in (("BraTS-GLI-00001-000", suffixes[0], "-"), ("BraTS2021_00002", suffixes[1], "_")):
        for channel, name in enumerate([*names, "seg"]):
            save(image(channel), tmp_path / "input" / case / f"{case}{separator}{name}.nii.gz")
    files = [tmp_path / "input" / "BraTS-GLI-00001-000" / f"BraTS-GLI-00001-000-{name}.nii.gz" for name in suffixes[0]]
    options = [option for names in suffixes for option in ("--input-sockets", *names)]
    assert run(submission(model, "--target", "brats", *options)) == (0, "")
    labels = expected(model, files, ".nii.gz", tmp_path)
    written = sorted((tmp_path / "output").iterdir())
    assert [path.name for path in written] == ["BraTS-GLI-00001-000.nii.gz", "BraTS2021_00002.nii.gz"]
    for path in written:
        np.testing.assert_array_equal(read(path), labels)
        assert sitk.ReadImage(str(path)).GetOrigin() == pytest.approx(image().GetOrigin())


BAD_FOLDERS = {
    "channel": (["x-t1n"], "there are 0: x-t1n.nii.gz"),
    "twice": (["x-t1n", "y_t1n", "x-t1c"], "there are 0: x-t1n.nii.gz, 0: y_t1n.nii.gz, 1: x-t1c.nii.gz"),
    "part of a word": (["xt1n", "x-t1c"], "there are 1: x-t1c.nii.gz"),
    "empty": ([], "there are none"),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_a_bad_folder_is_named_and_does_not_cost_the_others(trained_model, submission, run, tmp_path, kind):
    names, message = BAD_FOLDERS[kind]
    (tmp_path / "input" / "bad").mkdir(parents=True)
    for channel, name in enumerate(("good/t1n", "good/t1c", *(f"bad/{name}" for name in names))):
        save(image(channel), tmp_path / "input" / f"{name}.nii.gz")
    code, said = run(submission(trained_model(channels=("t1n", "t1c")), "--target", "brats"))
    assert code == 1
    assert f"error: bad: the model takes the channels 0: t1n, 1: t1c; {message}\n" in said
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["good.nii.gz"]


def test_folders_that_are_not_there_are_missed(trained_model, submission, run, tmp_path):
    save(image(), tmp_path / "input" / "case-t1n.nii.gz")
    code, said = run(submission(trained_model(channels=("t1n",)), "--target", "brats"))
    assert (code, said) == (1, f"error: input {tmp_path / 'input'}: has no folder; there must be one per case\n")


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIOWithReorient", "Tiff3DIO", "NaturalImage2DIO"])
def test_plain_use_writes_what_nnunet_writes(trained_model, submission, run, tmp_path, reader):
    """The same files, to the byte."""
    rank, ending, _ = READERS[reader]
    model = trained_model(rank=rank, reader=reader, ending=ending, channels=("R", "G", "B")[: 3 if rank == 2 else 1])
    save(image(size=(20, 24), rgb=True) if rank == 2 else image(), tmp_path / "input" / f"a_0000{ending}")
    assert run(submission(model, "--target", "folder")) == (0, "")
    expected(model, [tmp_path / "input" / f"a_0000{ending}"], ending, tmp_path)
    beside = {"dataset.json", "plans.json", "predict_from_raw_data_args.json"}
    names = {path.name.replace("case", "a") for path in (tmp_path / "expected").iterdir()} - beside
    assert {path.name for path in (tmp_path / "output").iterdir()} == names >= {f"a{ending}"}
    for name in names:
        theirs = tmp_path / "expected" / name.replace("a", "case", 1)
        # The time is in the header of what gzip compressed.
        written, theirs = (
            gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
            for path in (tmp_path / "output" / name, theirs)
        )
        assert written == theirs


@pytest.mark.parametrize("ending", [".mha", ".nii.gz", ".nii", ".nrrd", ".tif", ".tiff"])
def test_formats(trained_model, submission, run, tmp_path, ending):
    model = trained_model()
    volume = image()
    save(volume, tmp_path / "input" / f"case_7{ending}")
    if ending.startswith(".tif"):  # knows size and spacing within slices, no more
        volume = sitk.ReadImage(str(tmp_path / "input" / f"case_7{ending}"))
    assert run(submission(model)) == (0, "")
    written = segmentation(tmp_path) / "case_7.mha"
    save(volume, tmp_path / "a_0000.nii.gz")
    np.testing.assert_array_equal(read(written), expected(model, [tmp_path / "a_0000.nii.gz"], ".nii.gz", tmp_path))
    header = written.read_bytes()[:500]
    assert b"CompressedData = True" in header
    labels, source = sitk.ReadImage(str(written)), sitk.ReadImage(str(tmp_path / "input" / f"case_7{ending}"))
    assert labels.GetSize() == source.GetSize()
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(labels, get)() == getattr(source, get)(), get


READERS = {
    "SimpleITKIO": (3, ".nii.gz", ".nrrd"),
    "NibabelIO": (3, ".nii.gz", ".mha"),
    "NibabelIOWithReorient": (3, ".nii.gz", ".mha"),
    "SimpleITKIOWithReorient": (3, ".nii.gz", ".mha"),
    "Tiff3DIO": (3, ".tif", ".mha"),
    "Tiff3DIO itself": (3, ".tif", ".tif"),
    "NaturalImage2DIO": (2, ".png", ".mha"),
    "NaturalImage2DIO itself": (2, ".png", ".tif"),
}


@pytest.mark.parametrize("reader", READERS)
def test_models_of_every_reader(trained_model, submission, run, tmp_path, reader):
    rank, ending, given = READERS[reader]
    reader = reader.split()[0]
    channels = ("R", "G", "B") if rank == 2 else ("MRI",)
    model = trained_model(rank=rank, reader=reader, ending=ending, channels=channels)
    volume = image(size=(20, 24), rgb=True) if rank == 2 else image(tilted=reader != "SimpleITKIOWithReorient")
    save(volume, tmp_path / "input" / f"a{given}")
    save(volume, tmp_path / "own" / f"a_0000{ending}")
    if ending == ".tif":
        for folder in ("input", "own"):
            (tmp_path / folder / "a.json").write_text(json.dumps({"spacing": (1.5, 0.9, 0.9)}))
    assert run(submission(model)) == (0, "")
    labels = expected(model, [tmp_path / "own" / f"a_0000{ending}"], ending, tmp_path)
    np.testing.assert_array_equal(read(segmentation(tmp_path) / "a.mha"), labels)
    written = sitk.ReadImage(str(segmentation(tmp_path) / "a.mha"))
    if given == ".mha":
        assert written.GetOrigin() == volume.GetOrigin()
        assert written.GetDirection() == volume.GetDirection()
        assert written.GetSpacing() == volume.GetSpacing()


@pytest.mark.parametrize("target", ["grand-challenge", "folder"])
@pytest.mark.parametrize("reader", READERS)
def test_probabilities_are_those_of_nnunet(trained_model, submission, run, tmp_path, reader, target):
    """On the grid of the image, whichever way the model's reader turns it."""
    rank, ending, given = READERS[reader]
    reader = reader.split()[0]
    channels = ("R", "G", "B") if rank == 2 else ("MRI",)
    model = trained_model(rank=rank, reader=reader, ending=ending, channels=channels)
    volume = image(size=(20, 24), rgb=True) if rank == 2 else image(tilted=reader != "SimpleITKIOWithReorient")
    if rank == 3 and reader == "SimpleITKIOWithReorient":
        volume = sitk.DICOMOrient(volume, "PIR")
    save(volume, tmp_path / "input" / f"a{given}")
    save(volume, tmp_path / "own" / f"a_0000{ending}")
    if ending == ".tif":
        for folder in ("input", "own"):
            (tmp_path / folder / "a.json").write_text(json.dumps({"spacing": (1.5, 0.9, 0.9)}))
    outputs = ["labels=organs", "probability:lesion=lesion", "probability:background=rest", "probability:organ=organ"]
    assert run(submission(model, "--target", target, "--output", *outputs)) == (0, "")

    labels, _ = expected_probabilities(model, tmp_path / "own" / f"a_0000{ending}", ending, tmp_path)
    output = tmp_path / "output" / ("images" if target == "grand-challenge" else "")
    of_labels = ".mha" if target == "grand-challenge" else ending
    np.testing.assert_array_equal(read(output / "organs" / f"a{of_labels}"), labels)
    of_maps = ".tif" if of_labels == ".png" else of_labels
    files = [output / folder / f"a{of_maps}" for folder in ("rest", "organ", "lesion")]
    maps = np.stack([read(file) for file in files])
    # The labels are on the image's grid, and the most probable everywhere: so the maps are, too.
    assert maps.dtype == np.float32
    np.testing.assert_array_equal(maps.argmax(0), labels)
    _, probabilities = expected_probabilities(model, tmp_path / "own" / f"a_0000{ending}", ending, tmp_path)
    np.testing.assert_array_equal(np.sort(maps.reshape(3, -1)), np.sort(probabilities.reshape(3, -1)))
    if "Reorient" not in reader:
        np.testing.assert_array_equal(maps, probabilities.reshape(maps.shape))
    written = sitk.ReadImage(str(files[0]))
    if given == ".mha" and of_maps != ".tif":
        for get in ("GetOrigin", "GetSpacing", "GetDirection"):
            assert getattr(written, get)() == pytest.approx(getattr(volume, get)(), abs=1e-6), get


def expected_probabilities(model, file, ending, tmp_path) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities that nnU-Net's own predictor writes."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    target = tmp_path / "expected" / "case"
    target.parent.mkdir(exist_ok=True)
    predictor.predict_from_files_sequential([[str(file)]], [str(target)], save_probabilities=True)
    return read(f"{target}{ending}"), np.load(f"{target}.npz")["probabilities"]


REGIONS = {"background": 0, "whole": [1, 2], "ignore": 3, "lesion": 2}


@pytest.mark.parametrize("names", [("whole", "lesion"), ("lesion", "whole")], ids=", ".join)
def test_probabilities_of_regions(trained_model, submission, run, tmp_path, names):
    model = trained_model(labels=REGIONS, regions_class_order=[1, 2])
    save(image(), tmp_path / "input" / "a_0000.nii.gz")
    outputs = [f"probability:{name}={name}" for name in names]
    assert run(submission(model, "--output", *outputs, "labels=labels")) == (0, "")
    labels, probabilities = expected_probabilities(model, tmp_path / "input" / "a_0000.nii.gz", ".nii.gz", tmp_path)
    assert (probabilities[0] != probabilities[1]).any()
    for name, channel in (("whole", 0), ("lesion", 1)):
        np.testing.assert_array_equal(read(tmp_path / "output" / "images" / name / "a.mha"), probabilities[channel])
    np.testing.assert_array_equal(read(tmp_path / "output" / "images" / "labels" / "a.mha"), labels)


def test_folds_and_mirroring_are_those_chosen(trained_model, submission, run, tmp_path):
    model = trained_model(folds=(0, 1, 2))
    save(image(), tmp_path / "input" / "a_0000.nii.gz")
    files = [tmp_path / "input" / "a_0000.nii.gz"]
    assert run(submission(model, "--folds", "0", "2", "--no-mirroring")) == (0, "")
    labels = read(segmentation(tmp_path) / "a.mha")
    np.testing.assert_array_equal(labels, expected(model, files, ".nii.gz", tmp_path, (0, 2), mirroring=False))
    for folds, mirroring in (((0, 2), True), ((0, 1, 2), False), ((0,), False)):
        assert (labels != expected(model, files, ".nii.gz", tmp_path, folds, mirroring)).any()


def test_settings_can_be_changed_in_the_export(trained_model, submission, run, tmp_path):
    model = trained_model(folds=(0, 1))
    save(image(), tmp_path / "input" / "a_0000.nii.gz")
    program = submission(model)
    path = tmp_path / "export" / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"folds": [1]}))
    assert run(program) == (0, "")
    labels = expected(model, [tmp_path / "input" / "a_0000.nii.gz"], ".nii.gz", tmp_path, (1,))
    np.testing.assert_array_equal(read(segmentation(tmp_path) / "a.mha"), labels)


@pytest.mark.parametrize(
    "names, cases",
    [
        (("a_0000", "b_0000"), ("a", "b")),
        (("scan_0000", "scan_0001"), ("scan_0000", "scan_0001")),
        (("a_0000", "b"), ("a_0000", "b")),
        ((".a", "b"), ("b",)),
    ],
    ids=str,
)
def test_names_of_images_of_one_channel(trained_model, submission, run, tmp_path, names, cases):
    for name in names:
        save(image(), tmp_path / "input" / f"{name}.mha")
    (tmp_path / "input" / "notes.txt").write_text("")
    assert run(submission(trained_model())) == (0, "")
    assert {path.name for path in segmentation(tmp_path).iterdir()} == {f"{case}.mha" for case in cases}


def truncated(path):
    save(image(), path)
    path.write_bytes(path.read_bytes()[:2000])


BAD_CASES = {
    "channel": (lambda f: save(image(), f / "bad_0000.mha"), "takes the channels 0: T1, 1: FLAIR; there are 0: bad_0"),
    "first channel": (lambda f: save(image(), f / "bad_0001.mha"), "there are 1: bad_0001.mha"),
    "channel twice": (
        lambda f: [save(image(), f / f"bad_0000{ending}") for ending in (".mha", ".nii.gz")],
        "there are 0: bad_0000.mha, 0: bad_0000.nii.gz",
    ),
    "no name of nnU-Net's": (lambda f: save(image(), f / "bad.mha"), "there are 0: bad.mha"),
    "text": (lambda f: (f / "bad_0000.mha").write_text("text"), "bad_0000.mha: cannot be read as an image"),
    "truncated": (lambda f: truncated(f / "bad_0000.mha"), "bad_0000.mha: cannot be read as an image"),
    "2D": (
        lambda f: [save(image(size=(20, 24)), f / f"bad_000{i}.mha") for i in range(2)],
        "bad_0000.mha: is 2D; the model takes 3D images",
    ),
    "colours": (
        lambda f: [save(image(rgb=True), f / f"bad_000{i}.mha") for i in range(2)],
        "bad_0000.mha: has 3 values per voxel, must have one",
    ),
    "sizes": (
        lambda f: [save(image(size=(20, 20, 20 + i)), f / f"bad_000{i}.mha") for i in range(2)],
        "bad_0001.mha: has size (20, 20, 21)",
    ),
}


@pytest.mark.parametrize("kind", BAD_CASES)
def test_a_bad_case_is_named_and_does_not_cost_the_others(trained_model, submission, run, tmp_path, kind):
    make, message = BAD_CASES[kind]
    for case in ("a", "z"):
        for channel in range(2):
            save(image(channel), tmp_path / "input" / f"{case}_000{channel}.mha")
    make(tmp_path / "input")
    code, said = run(submission(trained_model(channels=("T1", "FLAIR"))))
    assert code == 1
    assert f"error: bad: {tmp_path / 'input' if message.startswith('bad') else ''}" in said
    assert message in said
    assert "error: not segmented: bad\n" in said
    assert "Traceback" not in said
    assert sorted(path.name for path in segmentation(tmp_path).iterdir()) == ["a.mha", "z.mha"]


BAD_JOBS = {
    "none": ("t1", [], "socket t1: needs one image in"),
    "two": ("t1", ["a.mha", "b.mha"], "has 2: a.mha, b.mha"),
    "other socket": ("ct", ["a.mha"], "has not the image sockets that are needed (t1); it has: ct"),
}


@pytest.mark.parametrize("kind", BAD_JOBS)
def test_a_bad_job_is_explained(trained_model, submission, run, tmp_path, kind):
    slug, names, message = BAD_JOBS[kind]
    for name in names:
        save(image(), tmp_path / "input" / "images" / "mri" / name)
    write_job(tmp_path / "input", {slug: "images/mri"})
    code, said = run(submission(trained_model(), "--input-sockets", "t1"))
    assert code == 1
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("content", ["{", "{}", '["t1"]', '[{"socket": {"slug": "t1"}}]'])
def test_a_bad_list_of_inputs_is_named(trained_model, submission, run, tmp_path, content):
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "inputs.json").write_text(content)
    code, said = run(submission(trained_model()))
    assert code == 1
    assert f"error: {tmp_path / 'input' / 'inputs.json'}: " in said
    assert "Traceback" not in said


def test_an_input_without_images_is_named(trained_model, submission, run, tmp_path):
    program = submission(trained_model())
    assert run(program) == (1, f"error: input {tmp_path / 'input'}: no such folder\n")
    (tmp_path / "input").mkdir()
    code, said = run(program)
    assert code == 1
    assert "neither inputs.json nor an image (.nii.gz" in said


def test_what_is_missing_of_the_model_is_named(trained_model, submission, run, tmp_path):
    program = submission(trained_model())
    (tmp_path / "export" / "model" / "fold_0" / "checkpoint_final.pth").unlink()
    (tmp_path / "export" / "model" / "plans.json").unlink()
    code, said = run(program)
    assert code == 1
    assert "has no plans.json, fold_0/checkpoint_final.pth; unpack model.tar.gz there" in said


OUT_OF_MEMORY = "out of GPU memory (CUDA out of memory); this case takes long, on the CPU\n"


def test_one_case_is_predicted_on_the_cpu_when_the_gpu_runs_out_of_memory(
    trained_model, submission, run, tmp_path, monkeypatch
):
    """And the next one on the GPU again, which is a CPU here."""
    model = trained_model()
    for case in ("a", "b"):
        save(image(), tmp_path / "input" / f"{case}_0000.nii.gz")
    devices = []
    predict = nnUNetPredictor.predict_logits_from_preprocessed_data

    def out_of_memory_at_first(self, data):
        device = self.device
        devices.append((device.type, self.perform_everything_on_device))
        if len(devices) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        self.device = torch.device("cpu")
        try:
            return predict(self, data)
        finally:
            self.device = device

    monkeypatch.setattr(nnUNetPredictor, "predict_logits_from_preprocessed_data", out_of_memory_at_first)
    program = submission(model)
    load = program.load_predictor

    def on_a_gpu(*arguments):
        predictor = load(*arguments)
        predictor.device, predictor.perform_everything_on_device = torch.device("cuda"), True
        return predictor

    monkeypatch.setattr(program, "load_predictor", on_a_gpu)
    monkeypatch.setattr(program, "device_name", lambda device: f"the {device.type}")
    assert run(program) == (0, OUT_OF_MEMORY)
    assert devices == [("cuda", True), ("cpu", False), ("cuda", True)]
    assert [line.split(" on ")[1].split(",")[0] for line in run.stdout.splitlines() if "voxels; read in" in line] == [
        "the cpu",
        "the cuda",
    ]
    monkeypatch.undo()
    labels = expected(model, [tmp_path / "input" / "a_0000.nii.gz"], ".nii.gz", tmp_path)
    for case in ("a", "b"):
        np.testing.assert_array_equal(read(segmentation(tmp_path) / f"{case}.mha"), labels)


@pytest.fixture(params=["foreground", "background"])
def job(request):
    """As a shell starts it: jobs in the background ignore interrupts."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler if request.param == "foreground" else signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_thread_that_runs_out_of_memory_does_not_stop_prediction_forever(
    trained_model, submission, run, tmp_path, monkeypatch, job
):
    """nnU-Net's thread that copies patches dies; its main thread would wait for the next patch."""
    model = trained_model()
    save(image(), tmp_path / "input" / "a_0000.nii.gz")
    clone = torch.clone
    failed = []

    def fail_once_in_the_thread(*arguments, **keywords):
        if not failed and threading.current_thread() is not threading.main_thread():
            failed.append(True)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return clone(*arguments, **keywords)

    monkeypatch.setattr(predict_from_raw_data.torch, "clone", fail_once_in_the_thread)
    assert run(submission(model)) == (0, OUT_OF_MEMORY)
    assert failed
    monkeypatch.undo()
    labels = expected(model, [tmp_path / "input" / "a_0000.nii.gz"], ".nii.gz", tmp_path)
    np.testing.assert_array_equal(read(segmentation(tmp_path) / "a.mha"), labels)


def test_other_failures_keep_their_traceback_and_leave_nothing(trained_model, submission, run, tmp_path, monkeypatch):
    save(image(), tmp_path / "input" / "a_0000.nii.gz")
    program = submission(trained_model())
    write_image = sitk.WriteImage

    def full(image, path, *arguments, **keywords):
        write_image(image, path, *arguments, **keywords)
        if path.startswith(str(tmp_path / "output")):
            raise RuntimeError("disk full")

    monkeypatch.setattr(program.sitk, "WriteImage", full)
    code, said = run(program)
    assert code == 1
    assert "Traceback" in said
    assert "error: a: disk full" in said
    assert not list(segmentation(tmp_path).iterdir())


def test_each_case_has_one_line_of_what_it_took(trained_model, submission, run, tmp_path):
    save(image(), tmp_path / "input" / "a_0000.nii.gz")
    assert run(submission(trained_model(trainer="nnUNetTrainerDeconver"))) == (0, "")
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("a: 20 x 18 x 22 voxels"))
    seconds = r"\d+\.\d s"
    assert re.fullmatch(
        rf"a: 20 x 18 x 22 voxels; read in {seconds}, predicted in {seconds} on cpu \(NDC: (cpu|plain.*)\), "
        rf"written in {seconds}",
        line,
    )


@pytest.fixture
def program():
    """The program as it is in this package."""
    return importlib.import_module("nnunet_deconver.submission.inference")


class TestDevice:
    """What is computed on, with a torch and GPUs that are pretended."""

    TOO_OLD = RuntimeError("The NVIDIA driver on your system is too old\n(found version 12020).")

    @pytest.fixture(autouse=True)
    def machine(self, program, monkeypatch):
        """A function that pretends a GPU: what its first use raises, whether torch and /dev see it."""

        def pretend(error, available=False, node=False, **variables):
            def ones(*_, device):
                assert device == "cuda"
                if error:
                    raise error
                return torch.zeros(1)

            for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
                monkeypatch.delenv(name, raising=False)
            for name, value in variables.items():
                monkeypatch.setenv(name, value)
            monkeypatch.setattr(program.torch, "ones", ones)
            monkeypatch.setattr(program.torch.cuda, "is_available", lambda: available)
            nodes = [program.Path("/dev/nvidia0")] if node else []
            monkeypatch.setattr(program.Path, "glob", lambda self, pattern: nodes)

        self.pretend = pretend

    def test_a_gpu_that_works_is_used(self, program, capsys):
        self.pretend(None, available=True, node=True)
        assert program.choose_device(allow_cpu=False) == torch.device("cuda")
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize(
        "seen",
        [
            {"node": True},
            {"node": True, "NVIDIA_VISIBLE_DEVICES": "all"},
            {"available": True},
            {"NVIDIA_VISIBLE_DEVICES": "GPU-4f"},
            {"NVIDIA_VISIBLE_DEVICES": "0"},
        ],
        ids=str,
    )
    def test_a_gpu_that_cannot_be_used_is_an_error(self, program, seen, capsys):
        self.pretend(self.TOO_OLD, **seen)
        with pytest.raises(program.UnusableError, match=r"is too old \(found version 12020\)\.; export with a --cuda"):
            program.choose_device(allow_cpu=False)
        assert program.choose_device(allow_cpu=True) == torch.device("cpu")
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("the GPU cannot be used (The NVIDIA driver on your system is too old (found version")

    @pytest.mark.parametrize(
        "seen",
        [
            {},
            {"NVIDIA_VISIBLE_DEVICES": "all"},
            {"NVIDIA_VISIBLE_DEVICES": "void"},
            {"node": True, "CUDA_VISIBLE_DEVICES": ""},
            {"node": True, "CUDA_VISIBLE_DEVICES": "-1"},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("error", [RuntimeError("No CUDA GPUs"), AssertionError("not compiled")], ids=str)
    def test_where_there_is_none_stderr_says_so(self, program, seen, error, capsys):
        self.pretend(error, **seen)
        assert program.choose_device(allow_cpu=False) == torch.device("cpu")
        assert capsys.readouterr().err == NO_GPU

    def test_the_program_ends_with_it(self, trained_model, submission, run):
        program = submission(trained_model())
        self.pretend(self.TOO_OLD, node=True)
        code, said = run(program)
        assert code == 1
        assert said.startswith("error: there is a GPU, and torch")
        assert said.count("\n") == 1


@pytest.fixture
def server(program):
    """A function that serves a job on a free port and returns a function that sends requests to it."""

    def start(run):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        threading.Thread(target=program.serve, args=(run, port), daemon=True).start()

        def ask(method, path, body=None) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            for _ in range(100):
                try:
                    connection.connect()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
            connection.request(method, path, body)
            return connection.getresponse().status

        return ask

    return start


def test_the_invoke_api_answers_as_the_platform_expects(server):
    """201 for a job that went well, anything else for one that did not, and jobs go on after that."""
    outcomes = iter([0, 1, RuntimeError("broken"), 0])

    def run():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    ask = server(run)
    assert ask("GET", "/health") == 200
    assert [ask("POST", "/invoke", body) for body in (None, b"", b"{}", b"x" * 100_000)] == [201, 500, 500, 201]
    assert [ask("GET", "/"), ask("GET", "/invoke"), ask("POST", "/health")] == [404, 404, 404]


def test_health_is_answered_during_a_job_and_jobs_wait_for_each_other(server):
    going, most, end = [], [], threading.Event()

    def run():
        going.append(True)
        most.append(len(going))
        end.wait(60)
        going.pop()
        return 0

    ask = server(run)
    answers = queue.Queue()
    for _ in range(2):
        threading.Thread(target=lambda: answers.put(ask("POST", "/invoke")), daemon=True).start()
    while not going:
        time.sleep(0.01)
    assert ask("GET", "/health") == 200
    assert answers.empty()
    end.set()
    assert [answers.get(timeout=60), answers.get(timeout=60)] == [201, 201]
    assert most == [1, 1]


@pytest.mark.parametrize("kind", ["unset", "not writable", "writable"])
def test_caches_are_where_they_can_be_written(program, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(program.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "file").touch()
    values = {"unset": None, "not writable": tmp_path / "file" / "x", "writable": tmp_path / "own" / "x"}
    for variable in ("HOME", *program.CACHES):
        if values[kind] is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, str(values[kind]))
    program.use_temporary_caches()
    folders = {os.environ[variable] for variable in ("HOME", *program.CACHES)}
    if kind == "writable":
        assert folders == {str(values[kind])}
    else:
        assert len(folders) == 1 + len(program.CACHES)
        assert all(program.Path(folder).is_dir() and folder.startswith(str(tmp_path / "tmp")) for folder in folders)

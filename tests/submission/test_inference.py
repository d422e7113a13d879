"""The program of an exported folder, in this process."""

import importlib.util
import json
import signal
import threading

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_deconver.cli import export_submission, main

TILT = (0.8, 0.6, 0, -0.6, 0.8, 0, 0, 0, 1)


@pytest.fixture(autouse=True)
def without_packages(monkeypatch):
    """Requirements are tested elsewhere, and take long to make; the variable that the program sets is put back."""
    versions = {"nnunet-deconver": "1", "nnunetv2": "2", "torch": "3"}
    monkeypatch.setattr(export_submission, "write_requirements", lambda folder: versions)
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
        return code, said.err

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


@pytest.mark.parametrize("ending", [".mha", ".nii.gz", ".nii", ".nrrd", ".tif", ".tiff"])
def test_formats(trained_model, submission, run, tmp_path, ending):
    model = trained_model()
    volume = image()
    save(volume, tmp_path / "input" / f"case_7{ending}")
    if ending.startswith(".tif"):  # knows size and spacing within slices, no more
        volume = sitk.ReadImage(str(tmp_path / "input" / f"case_7{ending}"))
    assert run(submission(model)) == (0, "")
    written = tmp_path / "output" / "case_7.mha"
    save(volume, tmp_path / "a_0000.nii.gz")
    np.testing.assert_array_equal(read(written), expected(model, [tmp_path / "a_0000.nii.gz"], ".nii.gz", tmp_path))
    header = written.read_bytes()[:500]
    assert b"CompressedData = True" in header
    labels, source = sitk.ReadImage(str(written)), sitk.ReadImage(str(tmp_path / "input" / f"case_7{ending}"))
    assert labels.GetSize() == source.GetSize()
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(labels, get)() == getattr(source, get)(), get


READERS = {
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
    np.testing.assert_array_equal(read(tmp_path / "output" / "a.mha"), labels)
    written = sitk.ReadImage(str(tmp_path / "output" / "a.mha"))
    if given == ".mha":
        assert written.GetOrigin() == volume.GetOrigin()
        assert written.GetDirection() == volume.GetDirection()
        assert written.GetSpacing() == volume.GetSpacing()


def test_folds_and_mirroring_are_those_chosen(trained_model, submission, run, tmp_path):
    model = trained_model(folds=(0, 1, 2))
    save(image(), tmp_path / "input" / "a_0000.nii.gz")
    files = [tmp_path / "input" / "a_0000.nii.gz"]
    assert run(submission(model, "--folds", "0", "2", "--no-mirroring")) == (0, "")
    labels = read(tmp_path / "output" / "a.mha")
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
    np.testing.assert_array_equal(read(tmp_path / "output" / "a.mha"), labels)


@pytest.mark.parametrize(
    "names, cases",
    [
        (("a_0000", "b_0000"), {"a", "b"}),
        (("scan_0000", "scan_0001"), {"scan_0000", "scan_0001"}),
        (("a_0000", "b"), {"a_0000", "b"}),
        ((".a", "b"), {"b"}),
    ],
    ids=str,
)
def test_names_of_images_of_one_channel(trained_model, submission, run, tmp_path, names, cases):
    for name in names:
        save(image(), tmp_path / "input" / f"{name}.mha")
    (tmp_path / "input" / "notes.txt").write_text("")
    assert run(submission(trained_model())) == (0, "")
    assert {path.name for path in (tmp_path / "output").iterdir()} == {f"{case}.mha" for case in cases}


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
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["a.mha", "z.mha"]


BAD_JOBS = {
    "none": ("t1", [], "socket t1: needs one image in"),
    "two": ("t1", ["a.mha", "b.mha"], "has 2: a.mha, b.mha"),
    "other socket": ("ct", ["a.mha"], "has no image socket t1; it has: ct"),
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


def test_continues_on_the_cpu_when_the_gpu_runs_out_of_memory(trained_model, submission, run, tmp_path, monkeypatch):
    model = trained_model()
    save(image(), tmp_path / "input" / "a_0000.nii.gz")
    devices = []
    predict = nnUNetPredictor.predict_logits_from_preprocessed_data

    def out_of_memory_at_first(self, data):
        devices.append((self.device.type, self.perform_everything_on_device))
        if len(devices) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return predict(self, data)

    monkeypatch.setattr(nnUNetPredictor, "predict_logits_from_preprocessed_data", out_of_memory_at_first)
    program = submission(model)
    load = program.load_predictor

    def on_a_gpu(*arguments):
        predictor = load(*arguments)
        predictor.device, predictor.perform_everything_on_device = torch.device("cuda"), True
        return predictor

    monkeypatch.setattr(program, "load_predictor", on_a_gpu)
    assert run(program) == (0, "")
    assert devices == [("cuda", True), ("cpu", False)]
    monkeypatch.undo()
    labels = expected(model, [tmp_path / "input" / "a_0000.nii.gz"], ".nii.gz", tmp_path)
    np.testing.assert_array_equal(read(tmp_path / "output" / "a.mha"), labels)


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
    assert run(submission(model)) == (0, "")
    assert failed
    monkeypatch.undo()
    labels = expected(model, [tmp_path / "input" / "a_0000.nii.gz"], ".nii.gz", tmp_path)
    np.testing.assert_array_equal(read(tmp_path / "output" / "a.mha"), labels)


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
    assert not list((tmp_path / "output").iterdir())

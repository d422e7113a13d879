import csv
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from skimage.io import imsave

from nnunet_deconver import cli
from nnunet_deconver.cli import demo
from nnunet_deconver.cli.errors import CommandError


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def describe(folder: Path, **changes):
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}, "numTraining": 0}
    (folder / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii.gz", **changes}))


def nifti_dataset(folder: Path, cases: int = 10) -> Path:
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(cases):
        labels = np.zeros((4, 12, 10), np.uint8)
        labels[1:3, 2:8, 3:7] = 1
        image = 50 * labels + rng.normal(size=labels.shape)
        sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / "imagesTr" / f"c{number:02d}_0000.nii.gz"))
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(folder / "labelsTr" / f"c{number:02d}.nii.gz"))
    describe(folder)
    return folder


def rgb_dataset(folder: Path, cases: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(cases):
        labels = np.zeros((24, 20), np.uint8)
        labels[4:12, 5:15] = 1
        image = rng.integers(0, 100, (24, 20, 3)).astype(np.uint8)
        image[..., 1] += 100 * labels
        imsave(folder / "imagesTr" / f"eye {number}_0000.png", image, check_contrast=False)
        imsave(folder / "labelsTr" / f"eye {number}.png", labels, check_contrast=False)
    describe(folder, channel_names={"0": "R", "1": "G", "2": "B"}, file_ending=".png")
    return folder


# Bad input: exit code 2, a message that says what to do, and nothing written


@pytest.fixture
def refuses(tmp_path, capsys, monkeypatch):
    """Asserts that the demo ends with exit code 2 and a message, without a command run or a file written."""
    monkeypatch.setattr(demo, "run_command", lambda *_: pytest.fail("a command was run"))

    def check(arguments, words):
        before = tree(tmp_path)
        out = [] if "--out" in arguments else ["--out", tmp_path / "out"]
        assert cli.main(["demo", *map(str, [*arguments, *out])]) == 2
        error = capsys.readouterr().err
        assert [word for word in words if word not in error] == [], error
        assert "Traceback" not in error
        assert tree(tmp_path) == before

    return check


def without(name):
    return lambda folder: (folder / name).unlink()


def with_text(name, text):
    return lambda folder: (folder / name).write_text(text)


def with_description(**changes):
    return lambda folder: describe(folder, **changes)


def with_second_channel_but_for_one_case(folder):
    describe(folder, channel_names={"0": "T1", "1": "T2"})
    for first in (folder / "imagesTr").glob("*_0000.nii.gz"):
        if first.name != "c04_0000.nii.gz":
            first.with_name(first.name.replace("_0000", "_0001")).write_bytes(first.read_bytes())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without("dataset.json"), ["no dataset.json", "dataset_format.md"]),
        (with_text("dataset.json", "{"), ["cannot read", "dataset.json", "mend"]),
        (with_text("dataset.json", '{"labels": {}}'), ["channel_names", "file_ending", "add"]),
        (with_description(labels={"organ": 1}), ["refuses the labels", "ackground", "mend"]),
        (with_description(file_ending=".mha"), ["found 0 cases", "_0000.mha", "5 at least"]),
        (without("labelsTr/c03.nii.gz"), ["c03", "labelsTr", "add it"]),
        (with_text("imagesTr/c00_0000.nii.gz", "no image"), ["cannot read its images", "file_ending"]),
        (with_second_channel_but_for_one_case, ["c04", "c04_0001.nii.gz", "add it"]),
    ],
    ids=["no json", "bad json", "keys", "labels", "no cases", "no label", "no image", "no channel"],
)
def test_spoilt_dataset(spoil, words, tmp_path, refuses):
    folder = nifti_dataset(tmp_path / "Dataset123_Organ")
    spoil(folder)
    refuses(["--dataset", folder], ["--dataset", "Dataset123_Organ", *words])


def test_missing_or_misnamed_dataset(tmp_path, refuses):
    nowhere = tmp_path / "Dataset001_Nowhere"
    refuses(["--dataset", nowhere], ["--dataset", str(nowhere), "no such folder"])
    misnamed = nifti_dataset(tmp_path / "Organ")
    refuses(["--dataset", misnamed], ["--dataset", "Organ", "three digits", "rename"])


def test_too_few_cases(tmp_path, refuses):
    few = nifti_dataset(tmp_path / "Dataset123_Organ", cases=4)
    refuses(["--dataset", few], ["--dataset", "found 4 cases", "5 at least"])


@pytest.mark.parametrize("number", [0, -1, 7, 10])
def test_held_out_leaves_enough_cases(number, tmp_path, refuses):
    folder = nifti_dataset(tmp_path / "Dataset123_Organ")
    arguments = ["--dataset", folder, "--held-out", number]
    refuses(arguments, [f"--held-out {number}", "from 1 to 6", "10 cases"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "tpu"], ["--device tpu", "cpu or cuda"]),
        (["--device", "cuda"], ["--device cuda", "no CUDA device", "take cpu"]),
        (["--trainer", "nnUNetTrainerMissing"], ["--trainer nnUNetTrainerMissing", "nnunet-deconver list"]),
        (["--held-out", "3"], ["--held-out 3", "--dataset"]),
    ],
    ids=["device", "no GPU", "trainer", "held-out"],
)
def test_bad_options(arguments, words, refuses, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refuses(arguments, words)


def test_output_folder_of_somebody_else(tmp_path, refuses):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    words = ["--out", "thesis", "another folder", "--overwrite"]
    refuses(["--out", tmp_path / "thesis"], words)
    refuses(["--out", tmp_path / "thesis" / "chapter.tex"], ["--out", "is a file"])


@pytest.mark.parametrize("out", ["Dataset123_Organ", "Dataset123_Organ/out", "."])
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "overwrite"])
def test_output_folder_may_not_touch_the_dataset(out, overwrite, tmp_path, refuses):
    folder = nifti_dataset(tmp_path / "Dataset123_Organ")
    (tmp_path / demo.MARKER).touch()
    arguments = ["--dataset", folder, "--out", tmp_path / out, *overwrite]
    refuses(arguments, ["--out", "--dataset", "elsewhere"])


def test_prepare_output_removes_only_what_a_demo_writes(tmp_path):
    (tmp_path / "raw" / "Dataset990_Phantom").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (tmp_path / "results").symlink_to(elsewhere)
    for name in (demo.LOG, "thesis.tex"):
        (tmp_path / name).touch()
    demo.prepare_output(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [demo.MARKER, "elsewhere", "thesis.tex"]
    assert (elsewhere / "kept").exists()


# The user's data


@pytest.mark.parametrize(("cases", "held_out", "expected"), [(5, None, 1), (10, None, 2), (10, 4, 4)])
def test_held_out_cases(cases, held_out, expected, tmp_path):
    folder = nifti_dataset(tmp_path / "Dataset123_Organ", cases)
    dataset, again = (demo.read_dataset(folder, held_out) for _ in range(2))
    assert len(dataset.held_out) == expected
    assert sorted([*dataset.training, *dataset.held_out]) == [f"c{number:02d}" for number in range(cases)]
    assert dataset == again


def test_links_have_nnunets_names_and_leave_the_dataset_alone(tmp_path):
    folder = nifti_dataset(tmp_path / "Dataset123_Organ")
    before = tree(folder)
    dataset = demo.read_dataset(folder)
    raw = tmp_path / "out" / "raw" / dataset.name
    dataset.link(raw)
    assert tree(folder) == before
    for split, cases in (("Tr", dataset.training), ("Ts", dataset.held_out)):
        assert {path.name for path in (raw / f"images{split}").iterdir()} == {f"{case}_0000.nii.gz" for case in cases}
        assert {path.name for path in (raw / f"labels{split}").iterdir()} == {f"{case}.nii.gz" for case in cases}
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == len(dataset.training) == 8
    data = demo.RawData(raw)
    assert (data.number, data.is_2d, data.classes) == ("123", False, {"organ": 1})
    image, truth, spacing = data.read_held_out(data.cases("Ts")[0])
    assert (image.shape, truth.shape, list(spacing)) == ((1, 4, 12, 10), (4, 12, 10), [1, 1, 1])


def test_files_listed_in_the_description(tmp_path):
    folder = nifti_dataset(tmp_path / "Dataset123_Organ")
    (folder / "imagesTr").rename(folder / "scans")
    listed = {
        f"case{number}": {"images": [f"scans/c{number:02d}_0000.nii.gz"], "label": f"labelsTr/c{number:02d}.nii.gz"}
        for number in range(6)
    }
    describe(folder, dataset=listed)
    raw = tmp_path / "out" / folder.name
    demo.read_dataset(folder).link(raw)
    data = demo.RawData(raw)
    assert sorted(data.cases("Tr") + data.cases("Ts")) == sorted(listed)
    number = int(data.cases("Ts")[0][-1])
    assert os.path.samefile(data.images("Ts", f"case{number}")[0], folder / "scans" / f"c{number:02d}_0000.nii.gz")
    assert "dataset" not in data.description


def test_spacing_files_of_tif_come_along(tmp_path):
    import tifffile

    folder = tmp_path / "Dataset123_Organ"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(5):
        volume = np.random.default_rng(number).integers(0, 2, (4, 8, 8)).astype(np.uint8)
        tifffile.imwrite(folder / "imagesTr" / f"c{number}_0000.tif", volume)
        tifffile.imwrite(folder / "labelsTr" / f"c{number}.tif", volume)
        for name in ("imagesTr", "labelsTr"):
            (folder / name / f"c{number}.json").write_text('{"spacing": [3, 1, 2]}')
    describe(folder, file_ending=".tif", overwrite_image_reader_writer="Tiff3DIO")
    demo.read_dataset(folder).link(tmp_path / "out" / folder.name)
    data = demo.RawData(tmp_path / "out" / folder.name)
    assert data.read_held_out(data.cases("Ts")[0])[2] == [3, 1, 2]


def test_rgb_images_are_2d(tmp_path):
    folder = rgb_dataset(tmp_path / "Dataset021_Eyes")
    demo.read_dataset(folder).link(tmp_path / "out" / folder.name)
    data = demo.RawData(tmp_path / "out" / folder.name)
    assert data.is_2d
    image, truth, _ = data.read_held_out(data.cases("Ts")[0])
    assert (image.shape, truth.shape) == ((3, 1, 24, 20), (1, 24, 20))


def test_regions_and_ignore_label(tmp_path):
    folder = nifti_dataset(tmp_path / "Dataset123_Tumor", 5)
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    describe(folder, labels=labels, regions_class_order=[1, 2, 3])
    demo.read_dataset(folder).link(tmp_path / "out" / folder.name)
    data = demo.RawData(tmp_path / "out" / folder.name)
    assert data.classes == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": 3}
    assert data.ignore == 4


# The plan without a GPU


def plan(patch, strides, batch=2, network="PlainConvUNet"):
    stages, axes = len(strides), len(patch)
    blocks = {
        "PlainConvUNet": {"n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1)},
        "ResidualEncoderUNet": {"n_blocks_per_stage": [1, 3, 4, 6, 6, 6, 6][:stages]}
        | {"n_conv_per_stage_decoder": [1] * (stages - 1)},
    }[network]
    arch_kwargs = {
        "n_stages": stages,
        "features_per_stage": [min(32 * 2**stage, 320) for stage in range(stages)],
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": [[1 if stride == 1 and i else 3 for stride in axis] for i, axis in enumerate(strides)],
        "strides": strides,
        **blocks,
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "nnUNetPlans_x",
        "patch_size": patch,
        "batch_size": batch,
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{network}",
            "arch_kwargs": arch_kwargs,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {"plans_name": "nnUNetPlans", "configurations": {"x": configuration, "other": {}}}


PLANS = {
    "2D": plan([512, 448], [[1, 1]] + 6 * [[2, 2]], batch=12),
    "3D": plan([128, 112, 160], [[1, 1, 1]] + 4 * [[2, 2, 2]] + [[1, 2, 2]]),
    "3D, residual": plan([128, 128, 128], [[1, 1, 1]] + 5 * [[2, 2, 2]], network="ResidualEncoderUNet"),
    "anisotropic": plan([20, 320, 256], [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]),
    "large strides": plan([48, 48, 144], [[1, 1, 1], [2, 2, 2], [2, 2, 4], [2, 2, 6]]),
    "odd": plan([40, 56, 40], [[1, 1, 1]] + 3 * [[2, 2, 2]]),
    "flat": plan([1, 96, 96], [[1, 1, 1]] + 4 * [[1, 2, 2]]),
    "small": plan([24, 16], [[1, 1], [2, 2]], batch=1),
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("network", ["as planned", "Deconver"])
def test_small_plans_build_and_run(name, network):
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    from nnunet_deconver.networks.plans import deconver_architecture

    before = json.dumps(PLANS[name])
    small = demo.shrink_plans(PLANS[name], "x")
    assert json.dumps(PLANS[name]) == before
    small_plan, large_plan = small["configurations"]["x"], PLANS[name]["configurations"]["x"]
    strides = np.prod(small_plan["architecture"]["arch_kwargs"]["strides"], axis=0)
    assert all(size % stride == 0 and size > 0 for size, stride in zip(small_plan["patch_size"], strides, strict=True))
    architecture = small_plan["architecture"]
    if network == "Deconver":
        architecture = deconver_architecture(architecture)
    names = (architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"])
    with torch.device("meta"):
        patch = torch.empty(2, 1, *small_plan["patch_size"])
        outputs = get_network_from_plans(*names, 1, 3, allow_init=False, deep_supervision=True)(patch)
    assert outputs[0].shape == (2, 3, *small_plan["patch_size"])
    assert all(a <= b for a, b in zip(small_plan["patch_size"], large_plan["patch_size"], strict=True))


@pytest.mark.parametrize("name", PLANS)
def test_small_plans_are_small(name):
    small = demo.shrink_plans(PLANS[name], "x")
    small_plan, large_plan = small["configurations"]["x"], PLANS[name]["configurations"]["x"]
    network = small_plan["architecture"]["arch_kwargs"]
    assert small["plans_name"] == demo.SMALL_PLANS
    assert "__" not in demo.SMALL_PLANS
    assert small_plan["data_identifier"] == large_plan["data_identifier"]
    assert network["n_stages"] <= 4
    assert network["features_per_stage"] == [16, 32, 64, 128][: network["n_stages"]]
    assert math.prod(small_plan["patch_size"]) * small_plan["batch_size"] <= 2 * 48 * 32**2
    # The stages kept are the first ones, of the highest resolution.
    assert network["strides"] == large_plan["architecture"]["arch_kwargs"]["strides"][: network["n_stages"]]


def test_plans_are_cut_down_without_a_gpu_only(tmp_path, capsys):
    (tmp_path / "nnUNetPlans.json").write_text(json.dumps(PLANS["3D"]))
    assert demo.choose_plans(tmp_path, "x", "cuda") == "nnUNetPlans"
    assert "GPU" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 1
    assert demo.choose_plans(tmp_path, "x", "cpu") == demo.SMALL_PLANS
    said = capsys.readouterr().out
    assert "32x32x32" in said
    assert "128x112x160" in said
    assert json.loads((tmp_path / f"{demo.SMALL_PLANS}.json").read_text()) == demo.shrink_plans(PLANS["3D"], "x")


# Commands


def run_python(code, log, on_line=None):
    demo.run_command([Path(sys.executable).name, "-u", "-c", code], dict(os.environ), log, on_line)


def test_command_is_shown_and_its_output_logged(tmp_path, capsys):
    lines = []
    run_python("import sys; print('out'); print('err', file=sys.stderr)", tmp_path / "log", lines.append)
    assert f"$ {Path(sys.executable).name} -u -c " in capsys.readouterr().out
    assert lines == ["out", "err"]
    run_python("print('second')", tmp_path / "log")
    log = (tmp_path / "log").read_text()
    assert log.index("out\nerr") < log.index("second")


def test_failing_command_shows_the_end_of_its_log(tmp_path):
    with pytest.raises(CommandError, match="exit code 3") as error:
        run_python("for i in range(99): print('line', i)\nexit(3)", tmp_path / "log")
    assert "line 98" in str(error.value)
    assert "line 50" not in str(error.value)
    assert str(tmp_path / "log") in str(error.value)
    assert "line 0\n" in (tmp_path / "log").read_text()


def test_missing_command(tmp_path):
    with pytest.raises(CommandError, match="nnUNetv2_fly is not installed"):
        demo.run_command(["nnUNetv2_fly"], {}, tmp_path / "log")


# Starts a worker that shares its output, and prints both process ids.
WITH_WORKER = """
import os, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
print(os.getpid(), worker.pid)
"""


def assert_ended(pids, seconds=20):
    def running(pid):
        try:
            return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False

    deadline = time.monotonic() + seconds
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2
    assert not any(map(running, pids))


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also where these tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


needs_proc = pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks for processes in /proc")


@needs_proc
@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit], ids=["Ctrl-C", "kill"])
def test_interrupt_ends_the_command_and_its_workers(end, tmp_path, interruptible):
    pids = []

    def interrupt(line):
        pids.extend(map(int, line.split()))
        os.kill(os.getpid(), signal.SIGINT if end is KeyboardInterrupt else signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(end):
        run_python(WITH_WORKER + "time.sleep(99)", tmp_path / "log", interrupt)
    assert_ended(pids)
    assert signal.getsignal(signal.SIGTERM) == handler


@needs_proc
def test_workers_of_a_killed_command_do_not_keep_the_demo_waiting(tmp_path):
    pids = []
    start = time.monotonic()
    with pytest.raises(CommandError, match="exit code -9"):
        run_python(
            WITH_WORKER + "os.kill(os.getpid(), 9)", tmp_path / "log", lambda line: pids.extend(map(int, line.split()))
        )
    assert time.monotonic() - start < 60
    assert_ended(pids)


TRAINING_OUTPUT = """
2025-01-01 10:00:00.000000: Using torch.compile...
2025-01-01 10:00:00.000000: Epoch {0}
2025-01-01 10:00:00.000000: Current learning rate: 0.001
2025-01-01 10:00:08.000000: train_loss 0.1
2025-01-01 10:00:08.000000: Pseudo dice [np.float32(0.25), np.float32(0.75), nan]
2025-01-01 10:00:08.000000: Epoch time: 8.0 s
"""


def test_training_bar_follows_nnunets_output(tmp_path, capsys):
    (tmp_path / "debug.json").write_text('{"num_epochs": "3"}')
    with demo.TrainingBar(tmp_path / "debug.json") as bar:
        for epoch in range(2):
            for line in TRAINING_OUTPUT.format(epoch).splitlines():
                bar(line)
            assert bar.bar.n == epoch + 1
        assert bar.bar.total == 3
    assert "Dice 0.50" in capsys.readouterr().err


def test_training_bar_without_a_known_end(tmp_path):
    with demo.TrainingBar(tmp_path / "missing.json") as bar:
        bar("2025-01-01 10:00:00.000000: Epoch 0")
        assert bar.bar.total is None


# Thresholds


def raw_data(folder, images, truths, **changes):
    """A raw dataset with one training case and the held-out cases given as arrays."""
    for split, chosen in (("Tr", slice(1)), ("Ts", slice(None))):
        for name in ("images", "labels"):
            (folder / f"{name}{split}").mkdir(parents=True)
        for number, (channels, truth) in enumerate(zip(images[chosen], truths[chosen], strict=True)):
            for channel, image in enumerate(channels):
                path = folder / f"images{split}" / f"c{number}_{channel:04d}.nii.gz"
                sitk.WriteImage(sitk.GetImageFromArray(image.astype(np.float32)), str(path))
            path = folder / f"labels{split}" / f"c{number}.nii.gz"
            sitk.WriteImage(sitk.GetImageFromArray(truth.astype(np.uint8)), str(path))
    describe(folder, channel_names={str(i): "MRI" for i in range(len(images[0]))}, **changes)
    return demo.RawData(folder)


def means(dice):
    return {name: demo.mean_dice(cases.values()) for name, cases in dice.items()}


TWO_CLASSES = {"background": 0, "a": 1, "b": 2}


def test_thresholds_solve_what_intensity_tells(tmp_path):
    rng = np.random.default_rng(0)
    truths = [rng.integers(0, 3, (6, 8, 10)) for _ in range(2)]
    # In the second channel, shifted and stretched per case: found only after standardisation.
    images = [(rng.normal(size=t.shape), 100 * i + (i + 1) * np.array([0, 7, 3])[t]) for i, t in enumerate(truths)]
    dice = demo.best_threshold_dice(raw_data(tmp_path / "Dataset001_A", images, truths, labels=TWO_CLASSES))
    assert list(dice["a"]) == ["c0", "c1"]
    assert means(dice) == pytest.approx({"a": 1, "b": 1}, abs=0.1)


def test_thresholds_do_not_solve_what_it_does_not_tell(tmp_path):
    rng = np.random.default_rng(0)
    truths = [(rng.random((8, 16, 16)) < 0.2).astype(int) for _ in range(3)]
    images = [(rng.normal(size=t.shape),) for t in truths]
    labels = {"background": 0, "a": 1}
    dice = means(demo.best_threshold_dice(raw_data(tmp_path / "Dataset001_A", images, truths, labels=labels)))
    # Calling everything foreground is the best: 2 x 0.2 / (1 + 0.2).
    assert dice["a"] == pytest.approx(1 / 3, abs=0.03)


def test_thresholds_know_regions_ignored_voxels_and_absent_classes(tmp_path):
    truth = np.repeat([0, 1, 2, 4], 100).reshape(4, 10, 10)
    image = np.repeat([0, 5, 6, 5], 100).reshape(4, 10, 10)
    labels = {"background": 0, "both": [1, 2], "two": 2, "three": 3, "ignore": 4}
    data = raw_data(
        tmp_path / "Dataset001_A", [(image,)] * 2, [truth] * 2, labels=labels, regions_class_order=[1, 2, 3]
    )
    dice = means(demo.best_threshold_dice(data))
    assert dice["both"] == dice["two"] == 1
    assert math.isnan(dice["three"]) or dice["three"] == 0


def test_interval_dice_is_the_best_of_all():
    rng = np.random.default_rng(0)
    all_voxels, hits = rng.integers(5, 50, (3, 12)), rng.integers(0, 5, (3, 12))
    below, hits_below = (np.pad(counts, ((0, 0), (1, 0))).cumsum(axis=1) for counts in (all_voxels, hits))
    every = [
        2 * hits[:, low:high].sum(1) / (all_voxels[:, low:high].sum(1) + hits.sum(1))
        for low in range(12)
        for high in range(low + 1, 13)
    ]
    expected = max(every, key=np.mean)
    np.testing.assert_allclose(demo._interval_dice(below, hits_below), expected)


# The cases drawn


@pytest.mark.parametrize(
    ("scores", "titles"),
    [
        ([0.5], ["best: c0"]),
        ([0.5, 0.7], ["best: c1", "worst: c0"]),
        ([0.5, 0.9, 0.7], ["best: c1", "median: c2", "worst: c0"]),
        ([0.5, math.nan, 0.7], ["best: c1", "median: c2", "worst: c0"]),
        ([0.1, 0.2, 0.3, 0.4, 0.5], ["best: c4", "median: c2", "worst: c0"]),
    ],
    ids=["1 case", "2 cases", "3 cases", "nothing to find", "5 cases"],
)
def test_best_median_and_worst_case_are_drawn(scores, titles, tmp_path, monkeypatch):
    from nnunet_deconver.evaluation import panels

    truths = [np.ones((2, 3, 4), int) for _ in scores]
    data = raw_data(tmp_path / "Dataset001_A", [(t,) for t in truths], truths)
    dice = {"organ": {f"c{number}": score for number, score in enumerate(scores)}}
    drawn = []
    monkeypatch.setattr(panels, "draw_panels", lambda cases, *_, **__: drawn.extend(cases))
    demo.draw_cases(data, tmp_path / "Dataset001_A" / "labelsTs", dice, tmp_path / "demo.png", "")
    assert [case.title for case in drawn] == titles


# The whole of it, with commands that only leave the files nnU-Net would


class FakeNNUNet:
    """Predicts the truth without its first foreground voxels; records the commands and their environment."""

    def __init__(self):
        self.commands = []
        self.environment = None

    def __call__(self, command, environment, log, on_line=None):
        from nnunetv2.evaluation.evaluate_predictions import compute_metrics, save_summary_json
        from nnunetv2.utilities.json_export import recursive_fix_for_json_export

        log.open("a").write(" ".join(command))
        self.commands.append(command)
        self.environment = environment
        raw, preprocessed, results = (
            next(Path(environment[f"nnUNet_{name}"]).glob("Dataset*"), Path(environment[f"nnUNet_{name}"]))
            for name in ("raw", "preprocessed", "results")
        )
        data = demo.RawData(raw)
        name = command[0].removeprefix("nnUNetv2_")
        option = dict(zip(command, command[1:], strict=False))
        if name == "plan_and_preprocess":
            axes = 2 if data.is_2d else 3
            plans = plan([16] * axes, [[1] * axes, [2] * axes])
            plans["configurations"] = {option["-c"]: plans["configurations"]["x"]}
            (preprocessed / raw.name).mkdir(parents=True)
            (preprocessed / raw.name / "nnUNetPlans.json").write_text(json.dumps(plans))
        elif name == "train":
            model = results / raw.name / f"{option['-tr']}__{option['-p']}__{command[2]}"
            (model / "fold_0").mkdir(parents=True)
            (model / "fold_0" / "checkpoint_final.pth").touch()
            for line in TRAINING_OUTPUT.format(0).splitlines():
                on_line(line)
        elif name == "predict":
            Path(option["-o"]).mkdir()
            for number, case in enumerate(data.cases("Ts")):
                _, truth, _ = data.read_held_out(case)
                wrong = np.flatnonzero(truth)[: 10 * number]
                truth.reshape(-1)[wrong] = 0
                file = Path(option["-o"]) / f"{case}{data.ending}"
                if data.is_2d:
                    imsave(file, truth[0].astype(np.uint8), check_contrast=False)
                else:
                    sitk.WriteImage(sitk.GetImageFromArray(truth.astype(np.uint8)), str(file))
        elif name == "evaluate_folder":
            truths, predictions = Path(command[1]), Path(command[2])
            cases = []
            for truth in sorted(truths.glob(f"*{data.ending}")):
                prediction = predictions / truth.name
                cases.append(
                    compute_metrics(str(truth), str(prediction), data.io, list(data.classes.values()), data.ignore)
                )
                recursive_fix_for_json_export(cases[-1])
            save_summary_json({"metric_per_case": cases, "mean": {}}, str(predictions / "summary.json"))


@pytest.fixture
def nnunet(monkeypatch):
    fake = FakeNNUNet()
    monkeypatch.setattr(demo, "run_command", fake)
    monkeypatch.setattr(demo, "PHANTOM_TRAINING", 4)
    monkeypatch.setattr(demo, "PHANTOM_HELD_OUT", 3)
    return fake


def rows(path):
    with path.open(newline="") as file:
        return {row[0]: row[1:] for row in csv.reader(file)}


def test_demo_leaves_picture_table_log_and_model(nnunet, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["demo", "--device", "cpu", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [demo.PICTURE, demo.TABLE, demo.LOG, demo.MODEL, demo.MARKER]
    )
    assert (out / demo.MODEL / "fold_0" / "checkpoint_final.pth").exists()
    table = rows(out / demo.TABLE)
    assert list(table) == ["class", "large organ", "small organs", "lesion", "mean"]
    assert table["class"] == ["prediction", "best threshold", "phantom_004", "phantom_005", "phantom_006"]
    cases = [float(value) for value in table["mean"][2:]]
    assert cases[0] == 1 > cases[1] > cases[2]
    assert float(table["mean"][0]) == pytest.approx(np.mean(cases), abs=1e-3)
    assert float(table["mean"][1]) < 0.4
    printed = capsys.readouterr().out
    assert f"{float(table['lesion'][0]):.3f}" in printed
    assert str(out / demo.PICTURE) in printed


def test_commands_are_those_a_person_would_type(nnunet, tmp_path):
    out = tmp_path / "out"
    assert cli.main(["demo", "--device", "cpu", "--out", str(out), "--keep"]) == 0
    names = ["plan_and_preprocess", "train", "predict", "evaluate_folder"]
    assert [command[0] for command in nnunet.commands] == [f"nnUNetv2_{name}" for name in names]
    assert nnunet.commands[1][1:4] == ["990", "3d_fullres", "0"]
    for name in ("raw", "preprocessed", "results"):
        assert nnunet.environment[f"nnUNet_{name}"] == str(out / name)
    assert nnunet.environment["nnUNet_extTrainer"].split(os.pathsep)[0].endswith("shim")
    (split,) = json.loads((out / "preprocessed" / demo.PHANTOM / "splits_final.json").read_text())
    assert (len(split["train"]), len(split["val"])) == (3, 1)
    assert not {*split["train"], *split["val"]} & {f"phantom_00{i}" for i in (4, 5, 6)}
    assert all((out / name).is_dir() for name in demo.INTERMEDIATE)


@pytest.mark.parametrize("make", [nifti_dataset, rgb_dataset], ids=["3D", "RGB"])
def test_demo_of_a_dataset_only_reads_it(make, nnunet, tmp_path):
    folder = make(tmp_path / "data" / "Dataset021_Eyes")
    before = tree(folder)
    arguments = ["demo", "--dataset", str(folder), "--device", "cpu", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    assert tree(folder) == before
    assert nnunet.commands[1][2] == ("2d" if make is rgb_dataset else "3d_fullres")
    assert (tmp_path / "out" / demo.PICTURE).stat().st_size > 10_000
    assert list(rows(tmp_path / "out" / demo.TABLE)) == ["class", "organ", "mean"]


def test_former_demo_is_replaced_and_other_files_stay(nnunet, tmp_path):
    arguments = ["demo", "--device", "cpu", "--out", str(tmp_path)]
    (tmp_path / "thesis.tex").write_text("mine")
    assert cli.main(arguments) == 2
    assert cli.main([*arguments, "--overwrite", "--keep"]) == 0
    assert cli.main(arguments) == 0
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    assert not (tmp_path / "raw").exists()


def test_failing_command_exits_with_2(nnunet, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise CommandError("nnUNetv2_plan_and_preprocess failed")

    monkeypatch.setattr(demo, "run_command", fail)
    assert cli.main(["demo", "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
    assert "nnUNetv2_plan_and_preprocess failed" in capsys.readouterr().err

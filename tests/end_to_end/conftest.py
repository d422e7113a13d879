"""Tiny datasets and nnU-Net's own commands."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

import nnunet_deconver.shim

SHIM = str(Path(nnunet_deconver.shim.__file__).parent)
TINY = str(Path(__file__).parent / "tiny_trainers")
CASES = 5

LABELS = {
    901: {"background": 0, "organ": 1, "lesion": 2},
    902: {"background": 0, "whole": [1, 2], "lesion": 2},
    903: {"background": 0, "organ": 1, "lesion": 2, "ignore": 3},
}


def write_dataset(raw: Path, number: int):
    """An organ (ball) with a lesion (smaller ball) in noise; with an ignore label, half of it is annotated."""
    folder = raw / dataset_name(number)
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(number)
    grid = np.stack(np.meshgrid(*[np.arange(20)] * 3, indexing="ij"))
    for case in range(CASES + 1):
        centre = rng.uniform(8, 12, 3)[:, None, None, None]
        radius = np.sqrt(((grid - centre) ** 2).sum(0))
        label = (radius < 6).astype(np.uint8)
        label[radius < 3] = 2
        image = (label + 0.3 * rng.standard_normal(label.shape)).astype(np.float32)
        image[:, :, :4] = 0
        if "ignore" in LABELS[number]:
            label[:, 10:] = LABELS[number]["ignore"]
        split = "Tr" if case < CASES else "Ts"
        for array, path in (
            (image, folder / f"images{split}" / f"case_{case}_0000.nii.gz"),
            (label, folder / f"labels{split}" / f"case_{case}.nii.gz"),
        ):
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing((1.0, 1.0, 1.5))
            sitk.WriteImage(volume, str(path))
    description = {
        "channel_names": {"0": "MRI"},
        "labels": LABELS[number],
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    if number == 902:
        description["regions_class_order"] = [1, 2]
    (folder / "dataset.json").write_text(json.dumps(description))


def write_fingerprint(preprocessed: Path, number: int):
    """What nnUNetv2_extract_fingerprint would write, which draws 10^8 voxels for intensities that MRI does not need."""
    folder = preprocessed / dataset_name(number)
    folder.mkdir(parents=True)
    intensities = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
    fingerprint = {
        "spacings": [[1.5, 1.0, 1.0]] * CASES,
        "shapes_after_crop": [[20, 20, 16]] * CASES,
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "median_relative_size_after_cropping": 0.8,
    }
    (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))


def dataset_name(number: int) -> str:
    return f"Dataset{number}_Tiny"


class NnUNet:
    """nnU-Net's commands on one folder, as a person calls them."""

    def __init__(self, root: Path):
        self.raw, self.preprocessed, self.results = (root / n for n in ("raw", "preprocessed", "results"))
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("nnUNet")},
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    def run(self, command: str, *arguments, returncode=0, timeout=600, kill_after=None, **variables) -> str:
        """Runs a command of this environment and returns what it printed.

        With kill_after, it and its workers are killed after so many seconds, unless it has succeeded by then.
        """
        executable = str(Path(sys.executable).parent / command)
        # Into a file: workers of a process that died on purpose outlive it and would keep a pipe open.
        with tempfile.NamedTemporaryFile("w+") as log:
            command_line = [executable, *map(str, arguments)]
            found = self._call(command_line, self.environment | variables, log, timeout, kill_after)
            output = Path(log.name).read_text()
        killed = kill_after is not None and found == -signal.SIGKILL
        assert found == returncode or killed, f"{command} {arguments} -> {found}\n{output[-5000:]}"
        return output

    def _call(self, command: list[str], environment: dict[str, str], log, timeout: int, kill_after) -> int:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(timeout if kill_after is None else kill_after)
        except subprocess.TimeoutExpired:
            if kill_after is None:
                raise
            process.kill()
            return process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def train(self, number: int, trainer: str, *options, configuration="3d_fullres", plans="tinyPlans", **kwargs):
        """Trains on fold 0 on the CPU; returns the output and the model's folder."""
        output = self.run(
            "nnUNetv2_train",
            number,
            configuration,
            0,
            "-tr",
            trainer,
            "-p",
            plans,
            "-device",
            "cpu",
            *options,
            **kwargs,
        )
        return output, self.results / dataset_name(number) / f"{trainer}__{plans}__{configuration}"

    def predict(
        self, number: int, trainer: str, out: Path, *options, configuration="3d_fullres", plans="tinyPlans", **kwargs
    ):
        """Predicts the held-out case with fold 0 and returns the label map."""
        arguments = ["-i", self.raw / dataset_name(number) / "imagesTs", "-o", out, "-d", number, "-f", 0]
        arguments += ["-tr", trainer, "-p", plans, "-c", configuration, "-device", "cpu", "-npp", 1, "-nps", 1]
        self.output = self.run("nnUNetv2_predict", *arguments, *options, **kwargs)
        return sitk.GetArrayFromImage(sitk.ReadImage(str(out / f"case_{CASES}.nii.gz")))

    def plans(self, number: int, name: str) -> Path:
        return self.preprocessed / dataset_name(number) / f"{name}.json"


class WarmNnUNet(NnUNet):
    """The same in seconds less, by `warm.py`: for commands that some test also runs as processes of their own."""

    def __init__(self, root: Path):
        super().__init__(root)
        script = Path(__file__).with_name("warm.py")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._server = subprocess.Popen([sys.executable, str(script)], env=self.environment, text=True, **pipes)

    def _call(self, command: list[str], environment: dict[str, str], log, timeout: int, kill_after) -> int:
        asked = {"command": command, "environment": environment, "log": log.name, "timeout": timeout}
        asked["kill_after"] = kill_after
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def close(self):
        self._server.communicate()  # ends with its input


def shrink(plans: dict, patch: int = 16) -> dict:
    """The plan with a small patch and 8 to 16 features: seconds on a CPU, every trainer's features at work."""
    plans["plans_name"] = "tinyPlans"
    for configuration in plans["configurations"].values():
        if "patch_size" not in configuration:
            continue
        rank = len(configuration["patch_size"])
        configuration["patch_size"] = [patch] * rank
        configuration["batch_size"] = 2
        configuration["architecture"]["arch_kwargs"].update(
            n_stages=3,
            features_per_stage=[8, 16, 16],
            kernel_sizes=[[3] * rank] * 3,
            strides=[[1] * rank, [2] * rank, [2] * rank],
            n_conv_per_stage=[1] * 3,
            n_conv_per_stage_decoder=[1] * 2,
        )
    return plans


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """Three tiny datasets (labels, regions, ignore label), preprocessed by nnU-Net, with plans for a CPU."""
    warm = WarmNnUNet(tmp_path_factory.mktemp("nnunet"))
    for number in LABELS:
        write_dataset(warm.raw, number)
        write_fingerprint(warm.preprocessed, number)
    one_process = ["-npfp", 1, "-np", 1]
    warm.run("nnUNetv2_plan_and_preprocess", "-d", 901, "-c", "2d", "3d_fullres", *one_process, 1)
    warm.run("nnUNetv2_plan_and_preprocess", "-d", 902, 903, "-c", "3d_fullres", *one_process)
    for number in LABELS:
        plans = shrink(json.loads(warm.plans(number, "nnUNetPlans").read_text()))
        warm.plans(number, "tinyPlans").write_text(json.dumps(plans))
    yield warm
    warm.close()
    shutil.rmtree(warm.raw.parent)


@pytest.fixture(scope="session")
def nnunet(warm) -> NnUNet:
    """The same datasets and folders."""
    return NnUNet(warm.raw.parent)


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """What other datasets need of this file."""
    return SimpleNamespace(NnUNet=NnUNet, shrink=shrink)


@pytest.fixture(scope="session")
def tiny(nnunet) -> dict[str, str]:
    """The variable with which nnU-Net finds our trainers, and the tests' own."""
    return {"nnUNet_extTrainer": os.pathsep.join((SHIM, TINY))}
